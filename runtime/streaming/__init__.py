"""Audio that comes bit by bit, and audio too long to be heard at once."""
