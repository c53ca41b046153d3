"""What `salmonrun transcribe` does: recordings found, asked about, several at once, and written."""
