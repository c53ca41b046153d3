"""Checkpoint to bundle. `from export import export_bundle, ExportOptions`."""

from export.bundle import ExportOptions, export_bundle

__all__ = ["ExportOptions", "export_bundle"]
