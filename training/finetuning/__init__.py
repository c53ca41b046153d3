"""A run by its recipe: what is trained, on what loss, by transformers' Trainer."""
