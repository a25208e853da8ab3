"""Libraries that print: their progress bars off, their warnings kept for the record instead of the screen."""

import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from harness.core.errors import UnknownNameError


def silence(verbosity: str | None = None, *, offline: bool = False, bars: bool = False) -> None:
    """Switch off the libraries' own progress bars (unless ``bars``) and chatter, or show their log from a level on.

    Call before they are imported: they read these variables once.
    """
    if not bars:
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if offline:
        os.environ |= dict.fromkeys(
            ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE"), "1"
        )
    if verbosity:
        levels = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")
        if verbosity.upper() not in levels:
            raise UnknownNameError("log level", verbosity.upper(), levels, see=f"Give one of {', '.join(levels)}.")
        os.environ["LMEVAL_LOG_LEVEL"] = verbosity.upper()
        logging.basicConfig(level=verbosity.upper())
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


# Every score in a record has its own number of documents.
_STATED = "Metrics were not scored on the same number of documents"


class _Collector(logging.Handler):
    """Warnings by their wording: those that differ only in numbers count as repetitions of the first."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())[:300]
        if _STATED in text:
            return
        wording = re.sub(r"\d+", "0", text)
        self._seen[wording] += 1
        self._first.setdefault(wording, text)

    @property
    def messages(self) -> list[str]:
        """Each wording once, as first seen, with the number of its repetitions."""
        counted = ((text, self._seen[wording]) for wording, text in self._first.items())
        return [f"{text} ({times} times)" if times > 1 else text for text, times in counted]


@contextmanager
def collected_warnings(*loggers: str) -> Iterator[_Collector]:
    """Keep the warnings of these loggers instead of printing them."""
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
        yield collector
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
