"""Fused kernels that no library has: numpy reference, C++ for CPUs, Triton for GPUs.

Stays trivial at import: PyPI has another package called `kernels`, which transformers probes for and
uses from version 0.6 on. Version "0.0.0" keeps that probe quiet.
"""

__version__ = "0.0.0"
