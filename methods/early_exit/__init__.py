"""Methods that stop at the layer where a token is sure of its answer."""
