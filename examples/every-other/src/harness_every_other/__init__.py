"""The method every-other, found by the harness through the entry point in pyproject.toml."""
