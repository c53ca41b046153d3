"""The engine behind HTTP: `salmonrun serve`. Nothing else imports FastAPI."""
