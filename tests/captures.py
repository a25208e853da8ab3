"""A way of capturing steps that needs no GPU: they are played by running them again."""

from harness.measure.capture import Capture, Run, explained


class Replayed(Capture):
    """Runs the step in place of playing it, after as many tries as a graph needs."""

    name = "cuda graph"

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, run: Run, before: Run) -> Run:
        self.recorded += 1
        for _ in range(2):
            before()
            run()
        return run


class Stuck(Replayed):
    """Plays nothing, as a graph whose inputs moved away."""

    def record(self, run: Run, before: Run) -> Run:
        super().record(run, before)
        return lambda: None


class Failing(Capture):
    """Ends in an error of torch's."""

    name = "cuda graph"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def record(self, run: Run, before: Run) -> Run:
        with explained("captured"):
            raise self.error
