"""The version, written here alone: the build reads it without importing anything else."""

__version__ = "0.1.0"
