"""Tasks of the project's own board for real models: fixed parts of public data sets, small enough for one CPU core."""
