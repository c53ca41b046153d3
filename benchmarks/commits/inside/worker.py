"""Runs in a checkout of any commit, and asks that checkout's code, through its public API alone, what it is asked.

A JSON request on a line of stdin, a JSON reply on a line of stdout:

    run         commands                               -> {}; each is what would follow `python -m`
    load        bundle, threads                        -> {}
    generate    audio, ask, config                     -> an answer
    pieces      audio, ask, config                     -> an answer, its text as the pieces that came one by one
    listen      audio, asks, config                    -> an answer for each of the asks
    transcribe  audio, generation, config              -> an answer for each segment
    stream      audio, piece_s, ask_at_s, stream, generation -> an answer with all updates; then one about the middle
    together    requests                               -> all answers of these requests, each in a thread of its own
    margin      audio, window, ask, token_ids          -> best: what the best logit behind these is of; margin: its lead

What answers has `answers`, and `seconds`: name -> what it took. A failure is {"error": reason}.
"""

import dataclasses
import importlib
import json
import os
import runpy
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from runtime import EndpointConfig, Engine, GenerationConfig, Result, Segment, StreamConfig, TranscribeConfig, Update

Json = dict[str, Any]
OURS = ("salmonrun", "runtime", "export", "training", "kernels")


def serve() -> None:
    """Answer until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what commands print must not come between
    engine: Engine | None = None
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        try:
            reply: Json = {}
            if do == "run":
                run(request["commands"])
            elif do == "load":
                engine = None  # two need not fit into memory
                # Like with like: commits differ in what "auto" is.
                engine = Engine.load(request["bundle"], decoder="onnx", threads=request["threads"])
            else:
                assert engine is not None
                reply = DO[do](engine, request)
            check_origin()
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        replies.write(json.dumps(reply) + "\n")


def check_origin() -> None:
    """Whether all code of ours that is loaded is this checkout's: an installed salmonrun would prove nothing."""
    checkout = Path.cwd()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.split(".")[0] in OURS and file and not Path(file).resolve().is_relative_to(checkout):
            raise ImportError(f"{name} was imported from {file}, which is not in the checkout {checkout}")


def run(commands: list[list[str]]) -> None:
    """What `python -m` would, one after the other in one process: PyTorch is imported once."""
    for module, *arguments in commands:
        sys.argv = [module, *arguments]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                message = f"python -m {' '.join([module, *arguments])} ended with {end.code}; its log says why"
                raise RuntimeError(message) from end


def generate(engine: Engine, request: Json) -> Json:
    """One answer about a recording."""
    result = engine.generate(request["audio"], **request["ask"], config=generation(request["config"]))
    return {"answers": [answer(result)], "seconds": stages(result)}


def pieces(engine: Engine, request: Json) -> Json:
    """The same, piece by piece."""
    asked = engine.generate_iter(request["audio"], **request["ask"], config=generation(request["config"]))
    texts: list[str] = []
    while True:
        try:
            texts.append(next(asked))
        except StopIteration as end:
            return {"answers": [answer(end.value) | {"pieces": texts}], "seconds": stages(end.value)}


def listen(engine: Engine, request: Json) -> Json:
    """Many answers about one recording."""
    config, started = generation(request["config"]), time.perf_counter()
    with engine.listen(request["audio"]) as heard:
        listened = time.perf_counter()
        results = [heard.ask(**ask, config=config) for ask in request["asks"]]
        asked = time.perf_counter()
    seconds = {"listen": listened - started, "one ask": (asked - listened) / len(results)}
    return {"answers": [answer(result) for result in results], "seconds": seconds}


def transcribe(engine: Engine, request: Json) -> Json:
    """A recording of any length."""
    started = time.perf_counter()
    segments, info = engine.transcribe(
        request["audio"],
        generation=generation(request["generation"]),
        config=TranscribeConfig(**request["config"]),
    )
    answers = [segment_answer(segment) for segment in segments]
    seconds = {"total": time.perf_counter() - started}
    known = {"windows": info.windows, "dropped": info.dropped_samples, "notes": list(info.notes)}
    return {"answers": [*answers, known], "seconds": seconds}


def stream(engine: Engine, request: Json) -> Json:
    """A recording as it would come, but as fast as it is heard; asked about in between."""
    pcm, rate = soundfile.read(request["audio"], dtype="float32")
    ask_at = round(request["ask_at_s"] * rate) if request["ask_at_s"] else None
    updates: list[Update] = []
    asked: list[Json] = []
    config, search = stream_config(request["stream"]), generation(request["generation"])
    with engine.stream(config=config, generation=search, sample_rate=rate) as live:
        step = round(request["piece_s"] * rate)
        for first in range(0, len(pcm), step):
            if ask_at is not None and first <= ask_at < first + step:
                asked.append(answer(live.ask(task="caption", config=search)))
            updates += live.push(pcm[first : first + step])
        started = time.perf_counter()
        result = live.finish()
        finished = time.perf_counter() - started
        segments = live.segments
    said = answer(result) | {
        "updates": [[update.stable, update.partial, update.audio_s] for update in updates],
        "segments": [segment_answer(segment) for segment in segments],
    }
    latencies = [update.latency_s for update in updates]
    seconds = {"update": float(np.median(latencies)), "finish": finished} if latencies else {"finish": finished}
    return {"answers": [said, *asked], "seconds": seconds}


def together(engine: Engine, request: Json) -> Json:
    """All at once; what each takes alone is not told."""
    requests = request["requests"]
    begin = threading.Barrier(len(requests) + 1)

    def client(part: Json) -> list[Json]:
        begin.wait()
        answers: list[Json] = DO[part["do"]](engine, part)["answers"]
        return answers

    with ThreadPoolExecutor(len(requests)) as pool:
        running = [pool.submit(client, part) for part in requests]
        begin.wait()
        started = time.perf_counter()
        answers = [item for each in running for item in each.result()]
        elapsed = time.perf_counter() - started
    tokens = sum(len(item.get("token_ids", ())) for item in answers)
    return {"answers": answers, "seconds": {"total": elapsed, "one token": elapsed / max(1, tokens)}}


def margin(engine: Any, request: Json) -> Json:
    """First minus second logit of what follows these tokens; by what is behind the public API, where it is known."""
    first, end = request["window"] or (0, None)
    pcm, rate = soundfile.read(request["audio"], start=first, stop=end, dtype="float32")
    model = getattr(engine, "model", engine)  # the engine was the model itself once
    ids, embed = prompt_ids(model, request["ask"]), model.decoder.embed
    audio_embeds = model.encoder.encode(model.load_audio(pcm, rate))
    inputs = np.concatenate([embed(ids.before), audio_embeds, embed([*ids.after, *request["token_ids"]])])
    with model.decoder.open(1, len(inputs)) as (slot,):
        logits = prefill(model.decoder, slot, inputs)
    second, best = np.argsort(logits, kind="stable")[-2:]
    return {"margin": float(logits[best] - logits[second]), "best": int(best)}


def prompt_ids(model: Any, ask: Json) -> Any:
    """Token ids in front of the audio and behind it; before there were requests, the model made them alone."""
    if hasattr(model, "request"):
        return model.request(**ask).prompt
    return model.prompt_ids(ask.get("task"), ask.get("prompt"), ask.get("question"))


def prefill(decoder: Any, slot: Any, inputs: Any) -> Any:
    """Logits behind these embeddings: [V]; before decoders had rounds, prefill was a method."""
    if hasattr(decoder, "forward"):
        return importlib.import_module("runtime.decoder").prefill(decoder, slot, inputs)
    return decoder.prefill(slot, inputs)


DO: dict[str, Callable[[Engine, Json], Json]] = {
    "generate": generate,
    "pieces": pieces,
    "listen": listen,
    "transcribe": transcribe,
    "stream": stream,
    "together": together,
    "margin": margin,
}


def generation(given: Json) -> GenerationConfig:
    """JSON knows no tuples. Repetition is not ended early by code that can, since not all code can."""
    settings: Json = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    if "stop_repetition" in {field.name for field in dataclasses.fields(GenerationConfig)}:
        settings = {"stop_repetition": False} | settings
    return GenerationConfig(**settings)


def stream_config(given: Json) -> StreamConfig:
    """`endpoint` is None or what an EndpointConfig takes."""
    endpoint = given.get("endpoint")
    return StreamConfig(**given | {"endpoint": None if endpoint is None else EndpointConfig(**endpoint)})


def answer(result: Result) -> Json:
    """All of a result but its clock."""
    return {
        "text": result.text,
        "token_ids": list(map(int, result.token_ids)),
        "finish_reason": result.finish_reason,
        "notes": list(result.notes),
    }


def segment_answer(segment: Segment) -> Json:
    """All of a segment."""
    return {
        "text": segment.text,
        "token_ids": list(map(int, segment.token_ids)),
        "finish_reason": segment.finish_reason,
        "notes": list(segment.notes),
        "samples": [segment.start_sample, segment.end_sample],
        "window": list(segment.window),
    }


def stages(result: Result) -> dict[str, float]:
    """Where the time went."""
    return {**result.timings.stages, "total": result.timings.total_s}


if __name__ == "__main__":
    serve()
