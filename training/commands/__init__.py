"""One file for each command around checkpoints, and the table of them."""

from salmonrun.runtime.commands.main import Command, Group


def _command(name: str, summary: str) -> Command:
    return Command(name, f"salmonrun.training.commands.{name}", summary, extra="train")


TRAINING = Group(
    "make, train and measure a checkpoint",
    (
        _command("inspect", "what a file or folder is, and what to do with it"),
        _command("convert", "a published SALMONN .pth becomes a checkpoint"),
        _command("init", "a new checkpoint, around pretrained parts or of random weights"),
        _command("synthesize", "make a labelled data set without downloads"),
        _command("data", "look at annotations"),
        _command("finetune", "train a checkpoint by a YAML recipe"),
        _command("prune", "leave out the layers that a checkpoint needs least"),
        _command("distill", "train a smaller model on what a larger one says"),
        _command("evaluate", "score a checkpoint or a bundle on annotated recordings"),
        _command("report", "models beside each other: quality, memory, latency, size; a table and a picture"),
        _command("baseline", "the PyTorch side of latency --baseline, which starts it"),
    ),
)
