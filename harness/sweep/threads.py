"""A share of the cores for what is computed, not for what is planned.

Which kernels are fastest depends on the number of threads, and a run's id on the kernels. So everybody plans with all
threads: the sweep itself, the workers that evaluate side by side, and the one that measures costs alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def limited(count: int | None) -> Iterator[None]:
    """Compute with so many threads for the length of a ``with`` block; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
