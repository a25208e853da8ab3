"""The parts of ``harness analyze attention``, each as lines of numbers."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.core.errors import HarnessError, SpecError

if TYPE_CHECKING:
    from harness.run.session import Session

Lines = list[dict[str, Any]]
SHORTEST: Final = 256
TEXT: Final = 1024
"""Tokens of a text that is looked at, where the model has as many positions."""


def lengths_of(session: "Session", given: Sequence[int] | None, new_tokens: int) -> list[int]:
    """Lengths of contexts: those given, or doubled from 256 until the model has no positions for another.

    Raises:
        SpecError: a context and what is written after it are longer than the model's positions.
    """
    most = _positions(session)
    if given is not None:
        if given[-1] + new_tokens > most:
            raise SpecError(
                f"--lengths {given[-1]}: with {new_tokens} tokens after it, a context of {given[-1]:,} tokens is "
                f"longer than the model's {most:,} positions: give {most - new_tokens} at the most"
            )
        return list(given)
    doubled = [SHORTEST << step for step in range(64) if (SHORTEST << step) + new_tokens <= most]
    longest = (most - new_tokens) // 8 * 8
    return doubled if doubled and longest < 1.5 * doubled[-1] else [*doubled, max(longest, 8)]


def text_size(session: "Session", tokens: int | None) -> int:
    """Tokens of a text that is looked at.

    Raises:
        SpecError: more than the model's positions.
    """
    most = _positions(session)
    if tokens is not None and tokens > most:
        raise SpecError(f"--tokens {tokens}: the model has {most:,} positions; give as many or fewer")
    return min(TEXT, most) if tokens is None else tokens


def _positions(session: "Session") -> int:
    from harness.evaluate.positions import positions

    known = positions(session.plan.outline().config, session.job.model_args.get("max_length"))
    return known or 2048


def layers(session: "Session", size: int, documents: int, sinks: int, window: int) -> Lines:
    """A line for each head of each layer: entropy, and the shares on the first and the last keys."""
    from harness.analyze.attention_maps import observe

    ids = _tokens(session, size * documents)
    texts = [ids[start : start + size] for start in range(0, size * documents, size)]
    observed = observe(session.lm.decoder, texts, sinks, window, session.progress)
    return [
        {
            "layer": layer.layer,
            "head": head,
            "entropy": entropy,
            "uniform": layer.uniform,
            "sinks": first,
            "recent": last,
        }
        for layer in observed
        for head, (entropy, first, last) in enumerate(zip(layer.entropy, layer.sinks, layer.recent, strict=True))
    ]


def split(session: "Session", lengths: Sequence[int], tile: int, workers: int | None, rounds: int) -> Lines:
    """A line for each length: a decode step's attention in one layer of the model's shape, on threads of this machine.

    Raises:
        HarnessError: the configuration does not say how many heads there are.
    """
    import torch

    from harness.analyze.split_keys import Heads, measure

    config = session.plan.outline().config
    count = getattr(config, "num_attention_heads", None)
    if not isinstance(count, int):
        raise HarnessError(f"split: the configuration of {session.job.pretrained} does not say num_attention_heads")
    kv_heads = getattr(config, "num_key_value_heads", None) or count
    width = getattr(config, "head_dim", None) or config.hidden_size // count
    threads = workers or torch.get_num_threads()
    times = measure(Heads(kv_heads, count // kv_heads, width), lengths, tile, threads, rounds, session.progress)
    return [
        {"kv_heads": kv_heads, "workers": threads, "tile": tile, **asdict(each), "gain": each.gain} for each in times
    ]


def length(session: "Session", lengths: Sequence[int], new_tokens: int, rounds: int) -> Lines:
    """A line for each method, cost and length, with the length from which the method costs less."""
    from harness.analyze.crossing import measure
    from harness.measure.interleave import Participant

    with redirect_stdout(sys.stderr):  # tasks may print as they load
        specs = session.plan.specs
    session.check_calibrations(specs)
    attach = partial(session.attached_in_place_of, session.lm)
    dense, *methods = [Participant(spec.stack.label, partial(attach, spec)) for spec in specs]
    if not methods:
        raise SpecError("length: give a method other than dense, which it is compared with")
    crossings = measure(
        session.lm.decoder,
        dense,
        methods,
        _tokens(session, lengths[-1]),
        lengths,
        new_tokens=new_tokens,
        rounds=rounds,
        progress=session.progress,
    )
    return [
        {
            "method": crossing.method,
            "cost": crossing.cost,
            **asdict(ratio),
            "efficiency_length": crossing.efficiency_length,
        }
        for crossing in crossings
        for ratio in crossing.ratios
    ]


def kept(results: Path) -> Lines:
    """A line for each finished run that is compared with dense: score, and the share of the cache that it kept.

    Raises:
        HarnessError: there is none.
    """
    from harness.reports.attention import kept_lines
    from harness.reports.rows import rows
    from harness.results.store import Store

    store = Store(results)
    records = [folder.record().model_dump(mode="json") for folder in store.folders() if folder.finished]
    lines = kept_lines(rows(records))
    if not lines:
        raise HarnessError(
            f"kept: {results} holds no finished run that was compared with dense and whose cache was counted: "
            "`harness run --method kv-evict --task ...` makes one"
        )
    return lines


def _tokens(session: "Session", count: int) -> list[int]:
    """As many tokens of the task's training text; it begins again where it is shorter."""
    from harness.contract.study import Needs
    from harness.evaluate.calibration_text import calibration_for

    with redirect_stdout(sys.stderr):
        task = session.plan.specs[0].task
    study = calibration_for(task, "task", Needs(documents=512))
    tokenizer = session.lm.tokenizer
    ids = (tokenizer(f"{text}\n\n", add_special_tokens=False, verbose=False)["input_ids"] for text in study.texts)
    needed = list(islice(chain.from_iterable(ids), count))
    if not needed:
        raise HarnessError(f"{task.name}: its training text gives the model no token")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return list(islice(chain(begin, cycle(needed)), count))
