"""The data path behind the features: encoders, prompt, LLM, search, text."""

from collections.abc import Generator

from salmonrun.runtime.answer import answer, choose_search
from salmonrun.runtime.audio import Audio
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.model import Model
from salmonrun.runtime.request import Request
from salmonrun.runtime.result import Result, empty_result, make_result
from salmonrun.runtime.stopwatch import Stopwatch
from salmonrun.runtime.terms import CancelledEarlyError, Terms


def generate(
    model: Model, recording: Audio, request: Request, terms: Terms, watch: Stopwatch
) -> Generator[str, None, Result]:
    """Pieces of the answer to one request about one recording, and the Result; see `Engine.generate_iter`."""
    config = request.config
    if note := model.silence(recording):
        return empty_result(recording, "stop", note, watch)
    try:
        inputs_embeds = model.inputs_embeds(request.prompt, model.encode(recording, terms, watch))
        lease = model.rounds.open(config.num_beams, len(inputs_embeds) + config.max_new_tokens, terms)
    except CancelledEarlyError as early:
        return empty_result(recording, "cancelled", str(early), watch)
    with lease as slots:
        search = choose_search(request, Chunk(slots[0], inputs_embeds), slots, len(inputs_embeds))
        watch.lap("prompt")
        answered = yield from answer(model, request, search, watch, terms, lease)
    return make_result(model, answered, recording, watch)
