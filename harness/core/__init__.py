"""What every room may use: errors, files, paths, the machine, progress."""
