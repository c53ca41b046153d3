"""The decoder on PyTorch, for GPUs: pooled keys and values on the device, a step of a batch as one CUDA graph.

On a CPU the same code runs, without graphs. PyTorch is the extra `torch`: nothing here is imported unless it is chosen.
"""
