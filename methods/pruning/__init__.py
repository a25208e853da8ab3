"""Methods that remove weights: layers, blocks, single weights."""
