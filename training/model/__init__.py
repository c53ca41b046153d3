"""The model in PyTorch, part by part."""
