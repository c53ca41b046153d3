"""The gate: what a bundle computes beside PyTorch."""
