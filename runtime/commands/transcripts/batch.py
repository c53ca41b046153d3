"""Many recordings, several at once, each into its files; what fails is told, and does not end the run."""

import errno
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue

from salmonrun.runtime.commands.transcripts.batch_progress import BatchProgress
from salmonrun.runtime.commands.transcripts.files import Job, claimed, write_transcript
from salmonrun.runtime.commands.transcripts.transcriber import Transcriber
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.transcript import Transcript

# Recordings at once. The encoders work on one at a time, and the searches of all share their rounds: the second keeps
# the encoders busy, the further ones make rounds larger. docs/output.md has what was measured.
DEFAULT_WORKERS = 4
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what follows could not be written either


@dataclass(frozen=True)
class Outcome:
    """What became of a recording."""

    job: Job
    audio_s: float
    summary: str  # in a line, of one that is written
    error: str  # empty if there was none


def run_batch(transcriber: Transcriber, jobs: tuple[Job, ...], workers: int, progress: BatchProgress) -> list[Outcome]:
    """Answer about all recordings, in so many threads of the engine; those that failed.

    Whatever ends it before its time, Ctrl-C too, stops all threads within a token, and no file is left half-written.

    Raises:
        OSError: there is no room for files, or the progress cannot be shown.
    """
    cancel, ended = threading.Event(), SimpleQueue[Future[Outcome]]()
    failed = []
    with ThreadPoolExecutor(min(workers, len(jobs))) as pool:
        try:
            for job in jobs:
                pool.submit(_answer, transcriber, job, progress, cancel).add_done_callback(ended.put)
            for _ in jobs:
                outcome = ended.get().result()
                progress.ended(outcome.job, outcome.audio_s, outcome.summary, outcome.error)
                if outcome.error:
                    failed.append(outcome)
        except BaseException:
            cancel.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _answer(transcriber: Transcriber, job: Job, progress: BatchProgress, cancel: threading.Event) -> Outcome:
    """Files that cannot be written, where others could, are an outcome: a long name, a folder that is not ours."""
    try:
        with claimed(job) as targets:
            if not targets:
                return Outcome(replace(job, targets={}), 0.0, "another run has written it", "")
            transcript = transcriber.transcribe(job.file, progress, cancel)
            if not transcript.error and not cancel.is_set():  # what was cancelled is not whole
                write_transcript(transcript, targets)
    except ConfigError as error:
        return Outcome(job, 0.0, "", str(error))
    except OSError as error:
        if error.errno in _FULL:
            raise
        return Outcome(job, 0.0, "", str(error))
    failed = str(transcript.error or "")
    return Outcome(job, _seconds(transcript), "" if failed else transcript.summary(), failed)


def _seconds(transcript: Transcript) -> float:
    return float(transcript.timings["audio_s"])
