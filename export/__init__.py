"""Checkpoint to bundle. `from salmonrun.export import export_bundle, ExportOptions`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from salmonrun.export.bundle import export_bundle as export_bundle
    from salmonrun.export.options import ExportOptions as ExportOptions
    from salmonrun.export.push import push_bundle as push_bundle
else:
    from salmonrun.lazy import attach

    __getattr__, __dir__, __all__ = attach(
        __name__, {"bundle": ["export_bundle"], "options": ["ExportOptions"], "push": ["push_bundle"]}
    )

if __name__ == "export":  # a checkout's folder, imported by its own name
    from salmonrun.checkout import stand_in

    stand_in(__name__)
