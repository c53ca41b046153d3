"""One file for each command of the engine, and the table of them."""

from salmonrun.runtime.commands.main import Command, Group

RUNNING = Group(
    "run a bundle",
    (
        Command("check", "salmonrun.runtime.commands.check", "prove that this machine computes what the exporter did"),
        Command("transcribe", "salmonrun.runtime.commands.transcribe", "answer a prompt about recordings"),
        Command("stream", "salmonrun.runtime.commands.stream", "answer a prompt about audio while it is coming"),
        Command("serve", "salmonrun.runtime.commands.serve", "answer over HTTP, in OpenAI's protocols", "serve"),
        Command("batch", "salmonrun.runtime.commands.batch", "transcribe a bucket on many machines", "ray"),
        Command("doctor", "salmonrun.runtime.commands.doctor", "say what this machine can run, and why not the rest"),
        Command("latency", "salmonrun.runtime.commands.latency", "measure time, memory and how sure that is"),
    ),
)
