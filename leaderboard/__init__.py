"""Records turned into a static site."""
