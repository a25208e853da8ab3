"""A decoder language model seen as parts: loading, anatomy, and the engines that change it."""
