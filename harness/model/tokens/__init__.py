"""Engines that stop or skip layers per token."""
