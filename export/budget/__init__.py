"""Choosing how the LLM is stored by a budget, and what that is measured with."""
