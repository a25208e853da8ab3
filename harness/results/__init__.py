"""Results: their schemas, the folder they live in, and comparisons of them."""
