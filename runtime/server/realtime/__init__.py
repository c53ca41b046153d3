"""WS /v1/realtime: OpenAI's transcription sessions."""
