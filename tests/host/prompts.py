"""The host's own prompts."""

GENERATE = "Write a question."
