"""Methods that choose, for each input, which layers run and how often."""
