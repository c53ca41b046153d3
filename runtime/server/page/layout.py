"""The page itself, in Gradio: what is asked for, and where answers appear."""

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from salmonrun.runtime.config import SPEECH_PLACEHOLDER, GenerationConfig
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.model import DEFAULT_TASK
from salmonrun.runtime.prompt import SPEECH_MARK, task_prompt
from salmonrun.runtime.server.page import markup
from salmonrun.runtime.server.page.ask import Instruction
from salmonrun.runtime.server.page.visits import Visits

OWN = "own instruction"  # beside the tasks of the bundle
TOKENS = 1000  # the most that a slider offers
EXAMPLE = "What can be heard?"

_SALMON = gr.themes.Color(
    *(
        "#fdf4f1",
        "#fbe5de",
        "#f6c9bb",
        "#efa48f",
        "#e57f64",
        "#d55f42",
        "#c2452d",
        "#a03724",
        "#7f2e20",
        "#67291f",
        "#3a1510",
    ),
    name="salmon",
)
THEME = gr.themes.Base(
    primary_hue=_SALMON,
    neutral_hue="stone",
    font=("system-ui", "sans-serif"),  # the visitor's own: nothing is loaded
    font_mono=("ui-monospace", "monospace"),
    radius_size="lg",
).set(
    body_text_color_subdued="*neutral_500",
    body_text_color_subdued_dark="*neutral_400",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_500",
    button_primary_text_color="white",
    button_primary_text_color_dark="white",
)


def layout(visits: Visits) -> gr.Blocks:
    """All of the page."""
    reports = [engine.report() for engine in visits.engines]
    with gr.Blocks(title="salmonrun", analytics_enabled=False) as page:
        gr.HTML(markup.header(reports), apply_default_css=False)
        with gr.Tabs():
            with gr.Tab("Ask", id="ask"):
                _ask(visits)
            with gr.Tab("Live", id="live"):
                gr.HTML(
                    markup.asset("live.html"),
                    js_on_load=markup.asset("live.js"),
                    elem_id="live",
                    apply_default_css=False,
                )
            with gr.Tab("Long recordings", id="long"):
                _long(visits)
        page.unload(_leaving(visits))
    page.queue(default_concurrency_limit=None)  # who waits, and how many may, is the server's own queue's to say
    return page


def _ask(visits: Visits) -> None:
    engine = visits.engines[0]
    state = gr.State([])
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            audio = _recording("Recording")
            task, text = _instruction(engine)
            beams, tokens = _settings(engine)
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", elem_id="ask-button", min_width=80)
                stop = gr.Button("Stop", elem_id="ask-stop", min_width=80)
        with gr.Column(scale=3, min_width=320):
            answers = gr.HTML(visits.cards([]), elem_id="answers", apply_default_css=False)

    async def answer(
        path: str | None, task: str, text: str, beams: float, tokens: float, shown: list[Any], request: gr.Request
    ) -> AsyncIterator[tuple[str, list[Any]]]:
        """The answer of each bundle, as it grows, above the ones before."""
        asked = _asked(engine, task, text, beams, tokens)
        async for cards in visits.ask(_visitor(request), path, asked, shown):
            yield visits.cards(cards), cards

    inputs = [audio, task, text, beams, tokens, state]
    gr.on([ask.click, text.submit], answer, inputs, [answers, state], api_name="ask", show_progress="hidden")
    stop.click(_stopping(visits), queue=False, api_name="stop", show_progress="hidden")


def _long(visits: Visits) -> None:
    engine = visits.engines[0]
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            audio = _recording("Recording of any length")
            task, text = _instruction(engine)
            beams, tokens = _settings(engine)
            with gr.Row():
                start = gr.Button("Transcribe", variant="primary", elem_id="long-button", min_width=80)
                stop = gr.Button("Stop", elem_id="long-stop", min_width=80)
            files = gr.File(label="Transcript", visible=False, interactive=False, elem_id="long-files")
        with gr.Column(scale=3, min_width=320):
            talk = gr.HTML(markup.talk(None), elem_id="talk", apply_default_css=False)

    async def transcribe(
        path: str | None, task: str, text: str, beams: float, tokens: float, request: gr.Request
    ) -> AsyncIterator[tuple[str, Any]]:
        """Segments, as they are decoded, and in the end files of them."""
        asked = _asked(engine, task, text, beams, tokens)
        async for shown, written in visits.transcribe(_visitor(request), path, asked):
            yield markup.talk(shown), gr.File(value=written or None, visible=bool(written))

    start.click(
        transcribe, [audio, task, text, beams, tokens], [talk, files], api_name="transcribe", show_progress="hidden"
    )
    stop.click(_stopping(visits), queue=False, api_visibility="private", show_progress="hidden")


def _recording(label: str) -> gr.Audio:
    """A file, or what the microphone hears. Gradio itself would also fetch what is given as an address: not here."""
    audio = gr.Audio(sources=["upload", "microphone"], type="filepath", label=label, buttons=[], editable=False)
    fetch = audio.async_move_resource_to_block_cache

    async def uploaded(place: str) -> str | None:
        if "://" in place:
            raise gr.Error("a recording is a file, and not an address: upload it")
        moved: str | None = await fetch(place)
        return moved

    audio.async_move_resource_to_block_cache = (
        uploaded  # a class of our own would be a component with a front end to build
    )
    return audio


def _instruction(engine: Engine) -> tuple[gr.Dropdown, gr.Textbox]:
    """A task of the bundle, or one's own words; what the task says is shown."""
    tasks = engine.tasks
    first = DEFAULT_TASK if DEFAULT_TASK in tasks else tasks[0] if tasks else OWN

    def box(task: str) -> dict[str, Any]:
        if task == OWN:
            return {"label": "Instruction", "value": EXAMPLE, "interactive": True}
        said = task_prompt(engine.bundle.manifest.prompt, task).replace(SPEECH_MARK, "").replace(SPEECH_PLACEHOLDER, "")
        if _takes_question(engine, task):
            return {"label": "Question", "value": EXAMPLE, "interactive": True}
        return {"label": "Instruction of the task", "value": said.strip(), "interactive": False}

    chosen = gr.Dropdown([*tasks, OWN], value=first, label="Task", filterable=False)
    text = gr.Textbox(**box(first), lines=2, max_lines=6, submit_btn=False)
    chosen.change(
        lambda task: gr.Textbox(**box(task)),
        chosen,
        text,
        queue=False,
        api_visibility="private",
        show_progress="hidden",
    )
    return chosen, text


def _asked(engine: Engine, task: str, text: str, beams: float, tokens: float) -> Instruction:
    """What the visitor has chosen; sliders give numbers that can be."""
    config = GenerationConfig(num_beams=int(beams), max_new_tokens=int(tokens))
    if task == OWN:
        return Instruction(prompt=text, config=config)
    return Instruction(task=task, question=text if _takes_question(engine, task) else None, config=config)


def _takes_question(engine: Engine, task: str) -> bool:
    return "{}" in "".join(engine.bundle.manifest.prompt.tasks.get(task, ())[:1])


def _settings(engine: Engine) -> tuple[gr.Slider, gr.Slider]:
    default = GenerationConfig()
    with gr.Accordion("Settings", open=False):
        beams = gr.Slider(1, engine.model.limits.max_beams, value=default.num_beams, step=1, label="Beams")
        tokens = gr.Slider(1, TOKENS, value=default.max_new_tokens, step=1, label="New tokens at most")
    return beams, tokens


def _stopping(visits: Visits) -> Any:
    async def stop(request: gr.Request) -> None:
        """Within one token."""
        visits.stop(_visitor(request))

    return stop


def _leaving(visits: Visits) -> Any:
    async def leave(request: gr.Request) -> None:
        """At once; the file of the recording goes when it was not used for long."""
        await visits.leave(_visitor(request))

    return leave


def _visitor(request: gr.Request) -> str:
    """An open page; it has no other name."""
    return request.session_hash or ""
