"""Attention over chosen keys: how they are chosen, and how they are multiplied."""
