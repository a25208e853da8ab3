"""Methods that multiply nothing by the zeros of a model."""
