"""Tasks on long contexts: every document is generated, at a length in tokens of the model that reads it."""
