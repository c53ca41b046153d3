"""The commands that make a bundle and hand it on, and the table of them."""

from salmonrun.runtime.commands.main import Command, Group

EXPORT = Command("export", "salmonrun.export.commands.export", "a checkpoint becomes a verified bundle", extra="export")
PUSH = Command(
    "push", "salmonrun.export.commands.push", "a bundle becomes a repository of the Hugging Face Hub", extra="hub"
)
SIGN = Command("sign", "salmonrun.export.commands.sign", "a bundle gets a signature: who made it", extra="sign")
EXPORTING = Group("make a bundle of it", (EXPORT, SIGN, PUSH))
