"""Where the harness keeps what is not a result."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache: task names, prepared states. ``HARNESS_CACHE`` moves it."""
    if given := os.environ.get("HARNESS_CACHE"):
        return Path(given)
    from platformdirs import user_cache_path

    return user_cache_path("harness", appauthor=False)
