"""Methods that rewrite a model and leave its answers as they are."""
