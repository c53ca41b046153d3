"""What can run the LLM."""
