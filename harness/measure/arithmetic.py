"""How long a matrix product takes in other number formats than float32: probed, because a processor may lack them."""

from collections.abc import Callable
from typing import Final

import torch
from torch.nn.functional import linear

from harness.contract.decoder import Decoder
from harness.measure.clock import clock_for, seconds

TOKENS, INPUTS, OUTPUTS = 256, 128, 352
TIMES: Final = 3

MUCH_SLOWER: Final = 2.0
"""From this ratio on a user is told."""


def advise(model: Decoder, say: Callable[[str], None]) -> None:
    """Say in one line that this processor is slow in the model's number format, and which flag helps."""
    dtype = model.module.dtype
    if model.device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return
    ratio = slowdown(dtype)
    if ratio > MUCH_SLOWER:
        name = str(dtype).removeprefix("torch.")
        say(
            f"a matrix product over {TOKENS} tokens takes {ratio:.0f} times as long in {name} as in float32 on this "
            "processor: --model_args dtype=float32 avoids that, with twice the memory"
        )


def slowdown(dtype: torch.dtype) -> float:
    """Time of a small matrix product in a data type over its time in float32, on the CPU; some milliseconds."""
    x, weight = torch.ones(TOKENS, INPUTS), torch.ones(OUTPUTS, INPUTS)
    narrow_x, narrow_weight = x.to(dtype), weight.to(dtype)
    return time_ratio(lambda: linear(narrow_x, narrow_weight), lambda: linear(x, weight))


def time_ratio(call: Callable[[], object], baseline: Callable[[], object]) -> float:
    """Time of one call over that of another, on the CPU: the shortest of a few turns, which alternate."""
    clock = clock_for(torch.device("cpu"))
    call(), baseline()  # the first call of a shape sets things up
    turns = [(seconds(clock, call), seconds(clock, baseline)) for _ in range(TIMES)]
    return min(turn[0] for turn in turns) / min(turn[1] for turn in turns)
