"""Fused kernels that no library has: numpy reference, C++ for CPUs, Triton for GPUs.

Stays trivial at import: PyPI has another package called `kernels`, which transformers looks for. Where it finds ours it
reads salmonrun's version (0.18.2 up to 0.19 would make it import names that are not here) or, without package metadata,
this one.
"""

__version__ = "0.0.0"

if __name__ == "kernels":  # a checkout's folder, imported by its own name
    from salmonrun.checkout import stand_in

    stand_in(__name__)
