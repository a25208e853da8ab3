"""``harness analyze attention``: each number against an oracle, and the command on the bundled model."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.analyze import split_keys
from harness.analyze.attention_maps import Observed, observe
from harness.analyze.crossing import Crossing, LengthRatio, measure, median_interval
from harness.analyze.schedule import idle, stream_k, whole_heads, work
from harness.contract.decoder import Decoder
from harness.measure.interleave import Participant
from harness.measure.serve import Served
from harness.testing.tiny import tiny_decoder
from tests.conftest import Harness
from tests.silent import Silent

SHAPES = [(1, 1, 1, 1), (3, 1000, 256, 2), (2, 77, 10, 5), (4, 64, 64, 4), (3, 10, 3, 8), (5, 4096, 128, 7)]


@pytest.mark.parametrize(("heads", "keys", "tile", "workers"), SHAPES)
def test_a_schedule_reads_every_key_once(heads: int, keys: int, tile: int, workers: int) -> None:
    for schedule in (whole_heads(heads, keys, workers), stream_k(heads, keys, tile, workers)):
        assert len(schedule) == workers
        read = [(piece.head, key) for pieces in schedule for piece in pieces for key in range(piece.start, piece.stop)]
        assert sorted(read) == [(head, key) for head in range(heads) for key in range(keys)]


@pytest.mark.parametrize(("heads", "keys", "tile", "workers"), SHAPES)
def test_tiles_are_dealt_evenly(heads: int, keys: int, tile: int, workers: int) -> None:
    """No worker has more than a tile above the mean, whatever the number of heads."""
    loads = work(stream_k(heads, keys, tile, workers))
    assert max(loads) <= heads * keys / workers + 2 * tile
    assert work(whole_heads(3, 100, 2)) == [100, 200]
    assert idle(whole_heads(3, 100, 2)) == pytest.approx(1 / 4)
    assert idle(stream_k(3, 1024, 1, 2)) == 0


@pytest.mark.parametrize(("heads", "keys", "tile", "workers"), SHAPES)
def test_a_split_is_whole_attention(heads: int, keys: int, tile: int, workers: int) -> None:
    draw = torch.Generator().manual_seed(keys)
    q = 8 * torch.randn(heads, 3, 16, dtype=torch.float64, generator=draw)  # scores far apart, too
    k, v = (torch.randn(heads, keys, 16, dtype=torch.float64, generator=draw) for _ in range(2))
    exact = torch.softmax(q @ k.transpose(1, 2) / 4, -1) @ v
    with ThreadPoolExecutor(workers) as pool:
        for schedule in (whole_heads(heads, keys, workers), stream_k(heads, keys, tile, workers)):
            for run in (None, pool):
                torch.testing.assert_close(split_keys.attend(q, k, v, schedule, run), exact, rtol=0, atol=1e-12)


def test_the_split_is_timed_and_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    (times,) = split_keys.measure(split_keys.Heads(3, 2, 8), [40], 16, 2, 2, Silent())
    assert torch.get_num_threads() == before
    assert min(times.sdpa, times.whole, times.split) > 0
    assert times.difference < 1e-5
    assert (times.idle_whole, times.idle_split) == (0.25, idle(stream_k(3, 40, 16, 2)))


def keys_and_queries(rows: int = 2, heads: int = 4, kv_heads: int = 2, keys: int = 12) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(rows, heads, keys, 8, generator=draw), torch.randn(rows, kv_heads, keys, 8, generator=draw)


def test_entropy_of_uniform_attention_is_the_log_of_the_keys() -> None:
    q, k = keys_and_queries()
    observed = Observed(sinks=3, window=2)
    observed.add(5, torch.zeros_like(q), k, None, 1.0)
    (layer,) = observed.layers()
    counts = range(7, 13)  # keys that the queries of the second half see
    assert layer.layer == 5
    assert layer.entropy == pytest.approx([sum(map(math.log, counts)) / 6] * 4, rel=1e-5)
    assert layer.uniform == pytest.approx(layer.entropy[0], rel=1e-5)
    assert layer.sinks == pytest.approx([sum(3 / count for count in counts) / 6] * 4, rel=1e-5)
    assert layer.recent == pytest.approx([sum(2 / count for count in counts) / 6] * 4, rel=1e-5)


def test_shares_of_a_hand_made_attention() -> None:
    """A query that has e times as much on its sink as on any other key, and one that looks at itself alone."""
    keys = torch.eye(4)[None, None]  # key i is the i-th unit vector
    queries = torch.zeros(1, 2, 4, 4)
    queries[:, 0, :, 0] = 1.0
    queries[:, 1] = 50 * torch.eye(4)
    observed = Observed(sinks=1, window=1)
    observed.add(0, queries, keys, None, 1.0)
    (layer,) = observed.layers()
    e = math.e
    sinks = [e / (e + 2), e / (e + 3)]  # of the queries that see three and four keys
    assert layer.sinks == pytest.approx([sum(sinks) / 2, 0.0], abs=1e-6)
    assert layer.recent == pytest.approx([(1 / (e + 2) + 1 / (e + 3)) / 2, 1.0], abs=1e-6)
    entropies = [
        -share * math.log(share) - n / (e + n) * math.log(1 / (e + n)) for n, share in ((2, sinks[0]), (3, sinks[1]))
    ]
    assert layer.entropy == pytest.approx([sum(entropies) / 2, 0.0], abs=1e-6)


def test_chunks_and_calls_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = keys_and_queries()
    mask = torch.ones(12, 12).tril().bool()[None, None]
    whole = Observed(2, 3)
    whole.add(0, q, k, None, 0.5)
    monkeypatch.setattr("harness.analyze.attention_maps.SCORES", 2 * 4 * 12 * 2)  # two queries at once
    parts = Observed(2, 3)
    for row in range(2):
        parts.add(0, q[row : row + 1], k[row : row + 1], mask, 0.5)
    for name in ("entropy", "sinks", "recent"):
        assert getattr(parts.layers()[0], name) == pytest.approx(getattr(whole.layers()[0], name), rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_what_is_seen_is_what_eager_attention_computes(kind: str) -> None:
    model = tiny_decoder(kind)
    ids = list(range(5, 29))
    before = model.module.config._attn_implementation
    layers = observe(model, [ids], 4, 8, Silent())
    assert model.module.config._attn_implementation == before
    model.module.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model.module(torch.tensor([ids]), output_attentions=True).attentions
    assert len(layers) == len(maps)
    for layer, weights in zip(layers, maps, strict=True):
        seen = weights[0, :, 12:].double()  # [heads, queries, keys]
        assert layer.sinks == pytest.approx(seen[..., :4].sum(-1).mean(-1).tolist(), abs=1e-5)
        assert layer.entropy == pytest.approx(torch.special.entr(seen).sum(-1).mean(-1).tolist(), abs=1e-4)


@pytest.mark.parametrize("count", [6, 7, 9, 20])
def test_the_medians_interval_covers_as_it_says(count: int) -> None:
    low, high = median_interval(range(count))
    assert low + high == count - 1
    outside = 2 * sum(comb(count, k) for k in range(int(low) + 1)) / 2**count
    narrower = 2 * sum(comb(count, k) for k in range(int(low) + 2)) / 2**count
    assert outside <= 0.05 < narrower
    with pytest.raises(ValueError, match="at least 6"):
        median_interval(range(5))


def crossing(*bounds: tuple[float, float]) -> int | None:
    ratios = [LengthRatio(256 << n, low, low, high, 1, 1) for n, (low, high) in enumerate(bounds)]
    return Crossing("m", "first token", tuple(ratios)).efficiency_length


def test_the_efficiency_length_is_the_first_from_which_all_are_cheaper() -> None:
    assert crossing((0.8, 0.9), (0.5, 0.6)) == 256
    assert crossing((1.2, 1.3), (0.9, 0.99), (0.5, 0.6)) == 512
    assert crossing((0.8, 0.9), (0.9, 1.0), (0.5, 0.6)) == 1024
    assert crossing((0.8, 0.9), (0.8, 1.1)) is None


def test_ratios_are_of_turns_with_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that takes 100 ms whatever the length, against dense's half a millisecond a token."""
    model, attached = tiny_decoder("llama"), list[str]()

    def participant(name: str) -> Participant:
        @contextmanager
        def attach() -> Iterator[None]:
            attached.append(name)
            yield
            attached.pop()

        return Participant(name, attach)

    def serve(model: Decoder, request: Any) -> Served:
        first = 0.1 if attached[-1] == "flat" else len(request.tokens) / 2000
        return Served((first, 2 * first), (1, 2))

    monkeypatch.setattr("harness.analyze.crossing.serve", serve)
    monkeypatch.setattr("harness.analyze.crossing._held", lambda *_: [4, 4, 4])
    dense, flat = participant("dense"), participant("flat")
    found = measure(model, dense, [flat], range(800), [100, 200, 400], new_tokens=2, rounds=6, progress=Silent())
    assert [each.cost for each in found] == ["first token", "each token after it", "KV cache"]
    assert [ratio.value for ratio in found[0].ratios] == pytest.approx([2, 1, 0.5])
    assert [each.efficiency_length for each in found] == [400, 400, None]


def analyze(harness: Harness, *words: object) -> Any:
    return harness("analyze", "attention", *words, "--json").json()


def test_layers_and_split_of_the_bundled_model(harness: Harness) -> None:
    found = analyze(harness, "--tokens", 48, "--documents", 2, "--lengths", "64,96", "--workers", 2)
    assert list(found) == ["layers", "split"]
    assert len(found["layers"]) == 12 * 4
    for line in found["layers"]:
        assert 0 <= line["entropy"] <= line["uniform"] * 1.001 <= math.log(48)
        assert 0 <= line["sinks"] <= 1
    assert [line["keys"] for line in found["split"]] == [64, 96]
    assert all(line["difference"] < 1e-4 for line in found["split"])


def test_costs_by_length_and_their_figures(harness: Harness, tmp_path: Path) -> None:
    words = ("length", "--method", "streaming:window=16,sinks=4", "--lengths", "24,64", "--new_tokens", 2)
    done = harness("analyze", "attention", *words, "-o", tmp_path / "figures")
    assert done.code == 0, done.err
    assert "costs less" in done.out
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written == {f"attention_length.{suffix}" for suffix in ("svg", "png", "csv")}
    rows = [line.split(",") for line in (tmp_path / "figures" / "attention_length.csv").read_text().splitlines()]
    shares = {
        int(row[rows[0].index("length")]): float(row[rows[0].index("value")]) for row in rows if "KV cache" in row
    }
    # the window and the sinks, of as many tokens as ran
    assert shares == pytest.approx({24: 20 / 25, 64: 20 / 65}, abs=0.03)


def test_kept_share_is_read_from_runs(harness: Harness, tmp_path: Path) -> None:
    job = ("--task", "pocket_long_needle_512", "--limit", 8, "--batch_size", 4, "--measure", "flops")
    assert harness("run", "--method", "streaming:window=60,sinks=4", *job).code == 0
    (line,) = analyze(harness, "kept")["kept"]
    assert line["kept"] == pytest.approx(64 / 512, rel=0.1)
    assert line["documents"] == 8
    done = harness("analyze", "attention", "kept")
    assert "streaming" in done.out
    assert f"{line['kept']:.1%}" in done.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["heads"], "unknown part 'heads'"),
        (["length"], "length: give --method NAME"),
        (["length", "-m", "dense"], "a method other than dense"),
        (["length", "-m", "nothing"], "unknown method 'nothing'"),
        (["split", "--lengths", "0"], "--lengths 0: expected whole numbers above 0"),
        (["split", "--lengths", "2040"], "longer than the model's 2,048 positions: give 2031"),
        (["layers", "--tokens", "4096"], "--tokens 4096: the model has 2,048 positions"),
        (["kept"], "holds no finished run"),
        (["split", "--rounds", "2"], "--rounds"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(harness: Harness, words: list[str], sentence: str) -> None:
    assert sentence in harness("analyze", "attention", *words).sentence


def test_a_model_that_nobody_can_look_into_is_refused(harness: Harness, tmp_path: Path) -> None:
    from harness.testing.tiny import tiny_model, tiny_tokenizer

    tiny_model("gemma2").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    done = harness("analyze", "attention", "layers", "--pretrained", tmp_path / "model", "--tokens", 32)
    assert "attn_logit_softcapping" in done.sentence
