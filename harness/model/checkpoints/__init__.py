"""Models as folders that other programs load too: written as a method left them, and read where weights are packed."""
