"""Checkpoint to bundle. `from export import export_bundle, ExportOptions`."""

from salmonrun.export.bundle import export_bundle
from salmonrun.export.options import ExportOptions

__all__ = ["ExportOptions", "export_bundle"]

if __name__ == "export":  # a checkout's folder, imported by its own name
    from salmonrun.checkout import stand_in

    stand_in(__name__)
