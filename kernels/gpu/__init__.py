"""Kernels for GPUs, in Triton: what a step of the torch decoder computes, in five launches a layer.

Triton and PyTorch are imported by the modules in here, never by this one. `TRITON_INTERPRET=1` in the environment, set
before they are imported, runs the same kernels on a CPU, slowly: so they are tested. `python -m salmonrun.kernels.gpu`
compiles all of them for GPUs that need not be there.
"""
