"""Decode attention over a quarter of the keys, in C, over torch's dense attention, in turns.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.gather_attention

One token, 16 heads of 64, float32. "shared" has one list for all heads, "by head" one for each, "pages" one for each of
whole pages of 16 keys; "cut" is dense attention over a cache that holds the quarter alone. Prints milliseconds, GB/s of
the keys and values that were read, and how many times faster than dense each is. Target: 2.5 for a shared list.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch.nn.functional import scaled_dot_product_attention

from harness.model.sparse_attention.lists import kernel_name, over_lists

HEADS, WIDTH, PAGE = 16, 64, 16


def lists(keys: int, heads: int, page: int, generator: torch.Generator) -> torch.Tensor:
    """A quarter of the keys, drawn in pages, ascending: int [1, heads, 1, kept]."""
    drawn = torch.rand(1, heads, 1, keys // page, generator=generator).argsort(-1)[..., : keys // page // 4]
    places = drawn.sort(-1).values[..., None] * page + torch.arange(page)
    return places.flatten(3).int()


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--keys", type=int, nargs="+", default=[4096, 16384])
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    print(f"{torch.get_num_threads()} threads, {kernel_name()}")
    for keys in args.keys:
        q, k, v = (torch.randn(1, HEADS, length, WIDTH, generator=generator) for length in (1, keys, keys))
        few_k, few_v = (tensor[:, :, : keys // 4].contiguous() for tensor in (k, v))
        shared, by_head = (lists(keys, heads, 1, generator) for heads in (1, HEADS))
        pages = lists(keys, HEADS, PAGE, generator)
        runs: dict[str, Callable[[], object]] = {
            "dense": lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v),
            "cut": lambda q=q, k=few_k, v=few_v: scaled_dot_product_attention(q, k, v),
            "shared": lambda q=q, k=k, v=v, kept=shared: over_lists(q, k, v, kept, WIDTH**-0.5),
            "by head": lambda q=q, k=k, v=v, kept=by_head: over_lists(q, k, v, kept, WIDTH**-0.5),
            "pages": lambda q=q, k=k, v=v, kept=pages: over_lists(q, k, v, kept, WIDTH**-0.5),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds + 2):
            for name, run in runs.items():
                times[name].append(seconds(run))
        whole = 2 * HEADS * keys * WIDTH * 4  # bytes
        dense = median(times["dense"][2:])
        for name, taken in times.items():
            middle = median(taken[2:])
            ratio = median(base / own for base, own in zip(times["dense"][2:], taken[2:], strict=True))
            read = whole if name == "dense" else whole / 4
            print(
                f"{keys:6} keys  {name:8} {1e3 * middle:7.3f} ms  {read / middle / 1e9:5.1f} GB/s  "
                f"{dense / middle:5.2f}x of medians, {ratio:5.2f}x in the median round"
            )


if __name__ == "__main__":
    main()
