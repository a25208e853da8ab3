"""Caches that hold other entries than one for each token seen."""
