"""The graphs of a bundle, built node by node."""
