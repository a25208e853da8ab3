"""Draft and verify: cheap guesses of the next tokens, looked at by one forward of the whole model."""
