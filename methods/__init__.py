"""The built-in efficiency methods, one file each, grouped by family."""
