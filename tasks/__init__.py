"""Bundled evaluation tasks as ordinary lm-eval YAML, with the generators of their data."""
