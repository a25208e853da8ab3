"""Engines that compute linear layers in another way, or with other weights."""
