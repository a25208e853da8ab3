"""Cost: what ran (trace), and the FLOPs and bytes that follow from it."""
