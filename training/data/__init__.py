"""Annotated recordings: read, checked, drawn, turned into batches."""
