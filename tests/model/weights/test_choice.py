"""A kernel is taken where it is faster than dense by a margin, and what was once decided stays decided."""

import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.core.errors import MethodError
from harness.model.weights import choice, probe
from harness.model.weights.choice import Decision, choose
from harness.model.weights.computations import Computation, Computations, Layer
from harness.model.weights.linear import ReplacementLayer

LAYER = Layer(64, 32, "float32")
CPU = torch.device("cpu")
DENSE = "dense product over all"


def nothing(weight: torch.Tensor, bias: torch.Tensor | None) -> ReplacementLayer:
    raise MethodError("nothing is to be made")


def ways(*names: str, source: str = "harness.model.weights.int8", **unable: str) -> Computations:
    kernels = [Computation(name, nothing) for name in names]
    kernels += [Computation(name, nothing, why_not) for name, why_not in unable.items()]
    return Computations(Computation("dense product over all", nothing), tuple(kernels), source)


class Machine:
    """A machine whose kernels take these parts of dense's time at each number of tokens; two are of the ends."""

    def __init__(self, **ratios: tuple[float, ...]) -> None:
        self.ratios = ratios
        self.probed = 0

    def probe(self, computations: Computations, layer: Layer) -> dict[str, list[float]]:
        self.probed += 1
        every = {"dense": (1.0, 1.0), computations.dense.name: (1.0, 1.0)} | self.ratios
        whole = {name: each if len(each) > 2 else (each[0], *[max(each)] * 2, each[-1]) for name, each in every.items()}
        names = ("dense", computations.dense.name, *(kernel.name for kernel in computations.able))
        dense = (1e-6, 1e-5, 5e-5, 1e-4)
        return {name: [ratio * each for ratio, each in zip(whole[name], dense, strict=True)] for name in names}


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Move to a machine; all machines share a cache."""
    monkeypatch.setattr(choice, "folder", lambda: tmp_path / "times")

    def move(**ratios: tuple[float, ...]) -> Machine:
        machine = Machine(**ratios)
        monkeypatch.setattr(choice, "probe", machine.probe)
        return machine

    return move


@pytest.mark.parametrize(
    ("ratios", "taken"),
    [
        ((0.89, 0.89), "quick"),
        ((0.91, 0.91), DENSE),
        ((1.0, 1.0), DENSE),
        ((0.5, 1.04), "quick"),  # a prompt as fast, to what times differ by, a step twice as fast
        ((1.04, 0.5), "quick"),
        ((0.5, 0.6, 0.7, 1.06), f"quick; {DENSE} from 64 tokens"),
        ((0.1, 0.2, 1.1, 9.0), f"quick; {DENSE} from 16 tokens"),
        ((0.89, 3.0, 3.0, 3.0), f"quick; {DENSE} from 3 tokens"),
        ((0.91, 3.0, 3.0, 3.0), DENSE),
        ((3.0, 1.2, 0.8, 0.3), f"{DENSE}; quick from 16 tokens"),
        ((0.5, 1.2, 0.5, 1.2), f"quick; {DENSE} from 3 tokens"),  # one product takes over from another one once
        ((4.0, 3.0), DENSE),
    ],
)
def test_a_kernel_is_taken_where_it_is_faster_by_the_margin(ratios: tuple[float, ...], taken: str, on: Any) -> None:
    on(quick=ratios)
    assert choose(ways("quick"), LAYER).kernel == taken
    assert choose(replace(ways("quick"), equal_work=False), LAYER).kernel == (taken if ";" not in taken else DENSE)


def test_of_several_the_fastest_is_taken(on: Any) -> None:
    on(first=(0.8, 0.8), second=(0.3, 0.9), third=(0.9, 2.0))
    assert choose(ways("first", "second", "third"), LAYER).kernel == "second"


@pytest.mark.parametrize(
    ("panels", "taken"),
    [
        ((1.9, 1.3, 0.9, 0.9), "quick; panels from 16 tokens"),
        ((1.9, 0.9, 1.03, 1.0), "quick; panels from 16 tokens"),  # no floats are kept for the sake of 3 percent
        ((1.9, 1.9, 1.2, 1.1), f"quick; {DENSE} from 16 tokens"),
        ((1.9, 1.0, 1.0, 1.0), "quick; panels from 16 tokens"),
    ],
)
def test_what_keeps_packed_weights_alone_goes_first(panels: tuple[float, ...], taken: str, on: Any) -> None:
    on(quick=(0.1, 0.4, 1.1, 2.0), panels=panels)
    assert choose(ways("quick", "panels"), LAYER).kernel == taken


def test_two_products_are_a_tenth_faster_than_one(on: Any) -> None:
    on(quick=(0.5, 0.5, 0.9, 1.0), panels=(1.5, 1.5, 0.8, 0.8))
    assert choose(ways("quick", "panels"), LAYER).kernel == "quick"
    on(swift=(0.5, 0.5, 0.9, 1.0), panels=(1.5, 1.5, 0.5, 0.5))
    assert choose(ways("swift", "panels"), LAYER).kernel == "swift; panels from 16 tokens"


def test_what_cannot_run_is_not_timed(on: Any) -> None:
    machine = on()
    assert choose(ways(quick="no such instructions"), LAYER) == Decision("dense product over all")
    assert not machine.probed


def test_a_decision_is_kept_when_later_timings_differ(on: Any) -> None:
    on(quick=(0.89, 0.89))
    first = choose(ways("quick"), LAYER)
    later = on(quick=(0.92, 0.92))
    assert choose(ways("quick"), LAYER) == first
    assert not later.probed
    (kept,) = choice.folder().glob("*.json")
    assert json.loads(kept.read_text())["layer"] == "64x32 float32"


BROKEN = {
    "empty": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "another thing": lambda text: "[1, 2]",
    "another layer": lambda text: text.replace("64x32", "64x33"),
    "times of nothing": lambda text: text.replace('"times"', '"tymes"'),
    "a time too few": lambda text: json.dumps(json.loads(text) | {"times": {"dense": [1], "quick": [1], DENSE: [1]}}),
    "no time": lambda text: json.dumps(
        json.loads(text) | {"times": {"dense": [1, 1, 1, 0], "quick": [1] * 4, DENSE: [1] * 4}}
    ),
    "no number": lambda text: json.dumps(
        json.loads(text) | {"times": {"dense": [1] * 4, "quick": [1, 1, 1, float("nan")], DENSE: [1] * 4}}
    ),
    "words for times": lambda text: json.dumps(
        json.loads(text) | {"times": {"dense": ["a", 1, 1, 1], "quick": [1] * 4, DENSE: [1] * 4}}
    ),
    "binary": lambda text: "\x00\x01",
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_cannot_be_read_is_measured_again_and_mended(how: str, on: Any) -> None:
    on(quick=(0.5, 0.5))
    choose(ways("quick"), LAYER)
    (kept,) = choice.folder().glob("*.json")
    kept.write_text(BROKEN[how](kept.read_text()))
    again = on(quick=(2.0, 2.0))
    for _ in range(2):
        assert choose(ways("quick"), LAYER).kernel == "dense product over all"
    assert again.probed == 1


def test_each_circumstance_is_measured_by_itself(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HARNESS_ISA", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    machine = on(quick=(0.5, 0.5), other=(0.5, 0.5))
    choose(ways("quick"), LAYER)
    choose(ways("quick"), Layer(64, 32, "bfloat16"))
    choose(ways("quick"), Layer(32, 64, "float32"))
    choose(ways("quick"), Layer(64, 32, "float32", 0.5, 16))
    choose(ways("quick"), Layer(64, 32, "float32", 0.8, 16))
    choose(ways("quick"), Layer(64, 32, "float32", 0.8, 4))
    choose(ways("quick", "other"), LAYER)
    choose(ways("quick", source="harness.model.weights.block_sparse"), LAYER)
    monkeypatch.setenv("HARNESS_ISA", "plain")
    choose(ways("quick"), LAYER)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    choose(ways("quick"), LAYER)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    choose(ways("quick"), LAYER)
    monkeypatch.setattr(torch, "__version__", "another")
    choose(ways("quick"), LAYER)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    choose(ways("quick"), LAYER)
    assert machine.probed == 13
    choose(ways("quick"), LAYER)
    assert machine.probed == 13


def test_shares_of_zeros_are_rounded_down_to_five_percent() -> None:
    weight = torch.empty(64, 32)
    shares = {share: Layer.of(weight, share, 16).zeros for share in (0, 0.049, 0.3, 0.5, 0.78, 0.8, 0.999)}
    assert shares == {0: 0, 0.049: 0, 0.3: 0.3, 0.5: 0.5, 0.78: 0.75, 0.8: 0.8, 0.999: 0.95}


def test_a_cache_that_cannot_be_written_changes_nothing(on: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(choice, "folder", lambda: tmp_path / "file" / "times")
    on(quick=(0.5, 0.5))
    assert choose(ways("quick"), LAYER).kernel == "quick"


def _decide(log: Path, ratio: float, answers: Any) -> None:
    def slow(computations: Computations, layer: Layer) -> dict[str, list[float]]:
        with log.open("a") as file:
            file.write("probed\n")
        time.sleep(0.2)
        return {"dense": [1.0] * 4, "dense product over all": [1.0] * 4, "quick": [ratio] * 4}

    choice.probe = slow
    answers.put(choose(ways("quick"), LAYER).kernel)


def test_of_processes_that_ask_at_once_one_measures(on: Any, tmp_path: Path) -> None:
    on()
    context = multiprocessing.get_context("fork")
    answers: Any = context.Queue()
    processes = [
        context.Process(target=_decide, args=(tmp_path / "log", ratio, answers)) for ratio in (0.5, 2.0, 0.5, 2.0)
    ]
    for process in processes:
        process.start()
    decisions = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(decisions) == 1
    assert (tmp_path / "log").read_text() == "probed\n"


class Clock:
    """A clock that only the calls that are timed move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        read = lambda: self.now  # noqa: E731
        monkeypatch.setattr(probe, "time", SimpleNamespace(thread_time=read, perf_counter=read))

    def call(self, name: str, *seconds: float) -> Any:
        remaining = list(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return run


def test_the_shortest_of_turns_counts_and_the_first_call_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls = {"dense": clock.call("dense", 9, 0.004, 0.002, 0.003), "quick": clock.call("quick", 0.0001, 0.003, 0.002)}
    assert probe.shortest(calls, probe.seconds_on(CPU)) == pytest.approx({"dense": 0.002, "quick": 0.002})
    assert clock.calls[:6] == ["dense", "quick"] * 3


def test_timing_ends_by_its_budget_and_what_is_hopeless_has_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    best = probe.shortest({"dense": clock.call("dense", 0.1), "slow": clock.call("slow", 0.5)}, probe.seconds_on(CPU))
    assert best == pytest.approx({"dense": 0.1, "slow": 0.5})
    assert (clock.calls.count("dense"), clock.calls.count("slow")) == (3, 2)  # the first call of each among them
    clock = Clock(monkeypatch)
    probe.shortest({"dense": clock.call("dense", 1e-6), "quick": clock.call("quick", 1e-6)}, probe.seconds_on(CPU))
    assert clock.calls.count("quick") == probe.ROUNDS + 1


@pytest.mark.parametrize(("width", "times"), [(64, 0), (1024, 2)])
def test_few_tokens_meet_weights_that_no_cache_holds(width: int, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless so many layers of a model fit into it."""
    emptied: list[int] = []
    read: list[tuple[int, int]] = []  # copies of a layer by their turn, in what is timed
    monkeypatch.setattr(probe.torch, "ones", lambda count: SimpleNamespace(sum=lambda: emptied.append(4 * count)))
    monkeypatch.setattr(probe, "shortest", lambda calls, seconds: {name: seconds(calls[name]) for name in calls})

    def make(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        made.append(len(made))
        return lambda x, number=made[-1]: read.append((number, len(x)))

    made: list[int] = []
    all_products: Any = Computation("all", make)
    timed = probe.probe(Computations(all_products, (), ""), Layer(width, width, "float32"))
    assert emptied == [4 * probe.CACHE] * 2 * times  # of two products
    assert len(made) == (2 if times else 1)
    copies = [(0, 1), (1, 1), (0, 8), (1, 8), (0, 32), (1, 32), (0, 128), (1, 128)]
    assert read == [each for each in copies if times or not each[0]]
    assert all(len(each) == 4 for each in timed.values())


def test_a_probe_takes_the_models_type_and_the_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    made, products = [], []

    def make(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        made.append(weight)
        return lambda x: products.append((x.shape, x.dtype))

    state = torch.get_rng_state()
    quick = Computation("quick", make)
    unable = Computation("unable", nothing, "not here")
    layer = Layer(40, 64, "bfloat16", 0.75, rows=16)
    times = probe.probe(Computations(Computation("all", make), (quick, unable), ""), layer)
    assert times.keys() == {"dense", "quick", "all"}
    assert all(len(seconds) == 4 for seconds in times.values())
    weight, _ = made
    assert (weight.shape, weight.dtype) == ((40, 64), torch.bfloat16)
    kept = torch.stack([group.any(0) for group in weight.split(16)])
    assert 0.15 < float(kept.float().mean()) < 0.35
    for group, columns in zip(weight.split(16), kept, strict=True):
        assert ((group != 0) == columns).all()
    assert set(products) == {((tokens, 64), torch.bfloat16) for tokens in (1, 8, 32, 128)}
    assert torch.equal(torch.get_rng_state(), state)
