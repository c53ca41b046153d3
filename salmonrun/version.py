"""The version, written here alone: the build reads it without importing anything else."""

__version__ = "0.2.0.dev0"  # of what comes after 0.1.0, until it is released: CONTRIBUTING.md
