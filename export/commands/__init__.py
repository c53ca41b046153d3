"""The command that makes a bundle, as a table like those of the other packages."""

from salmonrun.runtime.commands.main import Command, Group

EXPORT = Command("export", "salmonrun.export.commands.export", "a checkpoint becomes a verified bundle", extra="export")
EXPORTING = Group("make a bundle of it", (EXPORT,))
