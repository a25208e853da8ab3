"""Libraries that print: their progress bars off, their warnings kept for the record instead of the screen."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def silence(verbosity: str | None = None, *, offline: bool = False) -> None:
    """Switch off the libraries' own progress bars and chatter, or show their log from a level on.

    Call before they are imported: they read these variables once.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if verbosity:
        os.environ["LMEVAL_LOG_LEVEL"] = verbosity.upper()
        logging.basicConfig(level=verbosity.upper())
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


class _Collector(logging.Handler):
    def __init__(self, limit: int = 20) -> None:
        super().__init__(logging.WARNING)
        self.messages: dict[str, None] = {}
        self._limit = limit

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.messages) < self._limit:
            self.messages.setdefault(" ".join(record.getMessage().split())[:300])


@contextmanager
def collected_warnings(*loggers: str) -> Iterator[dict[str, None]]:
    """Keep the warnings of these loggers, each once, instead of printing them."""
    collector = _Collector()
    before = []
    for name in loggers:
        logger = logging.getLogger(name)
        before.append((logger, logger.handlers[:], logger.propagate))
        if logging.getLogger().handlers:  # the user asked to see them
            logger.addHandler(collector)
        else:
            logger.handlers, logger.propagate = [collector], False
    try:
        yield collector.messages
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
