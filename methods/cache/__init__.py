"""Methods that keep less in the cache of keys and values."""
