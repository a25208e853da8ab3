"""The cache is read: what a method takes out of it, or keeps in fewer bytes, shows in the trace."""

from contextlib import ExitStack, nullcontext
from typing import ClassVar

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from harness.evaluate.journal import Request, Served
from harness.evaluate.outcome import UNREAD, summary
from harness.measure.audit import count_flops
from harness.measure.cache import bytes_of
from harness.measure.flops import executed_flops
from harness.measure.segment import Segment, depth, ran_as_dense, row_as_dense
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.measure.traffic import keeps_all, kv_cache, traffic
from harness.model.surgery import without_branches
from harness.testing.tiny import tiny_decoder

LAYERS, WIDTH = 4, 32 * 4
"""Bytes of a token's keys and values in a layer: 2 heads, keys and values of 8 features, 4 bytes each."""


@pytest.fixture(scope="module")
def model():
    return tiny_decoder("llama", layers=LAYERS)


class Steps:
    """Serves a prompt and decode steps by hand, so that a test sees the cache between them."""

    def __init__(self, model, batch, cache, rows=1, prompt=9):
        self.model, self.cache, self.prompt = model, cache, prompt
        self.ids = torch.randint(3, 200, (rows, prompt))
        self.served = batch("generate", *[prompt] * rows)

    def run(self, steps=(1, 1, 1), between=lambda: None):
        def forwards():
            with torch.no_grad(), Tracer(self.model) as tracer, self.model.serving(*self.served):
                for length in (self.prompt, *steps):
                    self.model.module(self.ids[:, :length], past_key_values=self.cache)
                    between()
                return tracer.collect()

        rows, counted = count_flops(forwards)
        shape = ModelShape.of(self.model)
        assert sum(executed_flops(shape, row).total for row in rows) == counted
        return shape, rows[0]


class Evicting(DynamicLayer):
    """Keeps the last six positions, once attention has met all of them; the length goes on."""

    seen = 0

    def update(self, keys, values, *args, **kwargs):
        self.seen += keys.shape[-2]
        met = super().update(keys, values)
        self.keys, self.values = self.keys[..., -6:, :].clone(), self.values[..., -6:, :].clone()
        return met

    def get_seq_length(self):
        return self.seen

    def get_mask_sizes(self, query_length):
        held = 0 if not self.is_initialized else self.keys.shape[-2]
        return held + query_length, self.seen - held


class Rounded(DynamicLayer):
    """Keeps whole numbers of one byte, and a scale for each token and head."""

    def update(self, keys, values, *args, **kwargs):
        kept = [self._whole(part) for part in (keys, values)]
        if self.is_initialized:
            kept = [
                [torch.cat(pair, -2) for pair in zip(*both, strict=True)] for both in zip(self.parts, kept, strict=True)
            ]
        self.parts, self.is_initialized = kept, True
        return tuple(whole * scale for whole, scale in kept)

    def _whole(self, part):
        scale = part.abs().amax(-1, keepdim=True) / 127
        return [(part / scale).round().to(torch.int8), scale]

    def get_seq_length(self):
        return self.parts[0][0].shape[-2] if self.is_initialized else 0


def cache_of(kind):
    return Cache(layers=[kind() for _ in range(LAYERS)])


def test_eviction_shows(model, batch):
    shape, row = Steps(model, batch, cache_of(Evicting)).run()
    assert [segment.keys for segment in row] == [(), *[(7,) * LAYERS] * (len(row) - 1)]
    cached = kv_cache(shape, row)
    assert (cached.layers, cached.positions) == ((6 * WIDTH,) * LAYERS, 12)
    assert cached.per_token == LAYERS * 6 * WIDTH / 12
    assert ran_as_dense(row)  # its layers did
    assert not keeps_all(shape, row)
    dense = row_as_dense(row)
    assert kv_cache(shape, dense).layers == (12 * WIDTH,) * LAYERS
    assert traffic(shape, row).kv < traffic(shape, dense).kv
    # nine are written at once, then six are read and one is written, three times
    assert traffic(shape, row).kv == LAYERS * WIDTH * (9 + 3 * 7)


@pytest.mark.parametrize("rows", [1, 2])
def test_numbers_of_fewer_bytes_show(model, batch, rows):
    shape, row = Steps(model, batch, cache_of(Rounded), rows).run()
    bytes_of_token = 2 * 2 * (8 + 4)  # keys and values, heads, features and a scale
    assert kv_cache(shape, row).layers == (12 * bytes_of_token,) * LAYERS
    assert not keeps_all(shape, row)
    assert traffic(shape, row).kv < traffic(shape, row_as_dense(row)).kv
    assert kv_cache(shape, row).bytes < kv_cache(shape, row_as_dense(row)).bytes


@pytest.mark.parametrize(("copied", "stays"), [(True, 4), (False, 9)])
def test_what_is_taken_out_of_the_layers_by_hand_shows(model, batch, copied, stays):
    """A view keeps the memory that it shows a part of."""
    cache = DynamicCache(config=model.module.config)

    def evict(module, args, output):
        layer = cache.layers[module.layer_idx]
        layer.keys, layer.values = layer.keys[..., -4:, :], layer.values[..., -4:, :]
        if copied:
            layer.keys, layer.values = layer.keys.clone(), layer.values.clone()

    attention = model.anatomy.blocks[2].attention.modules[0]
    handle = attention.register_forward_hook(evict)
    try:
        with torch.no_grad(), Tracer(model) as tracer, model.serving(*batch("generate", 9)):
            model.module(torch.full((1, 9), 5), past_key_values=cache)
            (row,) = tracer.collect()
    finally:
        handle.remove()
    assert [size // WIDTH for size in kv_cache(ModelShape.of(model), row).layers] == [9, 9, stays, 9]
    assert keeps_all(ModelShape.of(model), row) is not copied  # attention met all of it once


def test_bytes_for_a_token_are_of_all_tokens_where_a_cache_is_cut_by_hand(model, batch):
    """Its length then says what is left, not what was seen."""
    cache = DynamicCache(config=model.module.config)

    def evict(module, args, kwargs, output):
        if kwargs["hidden_states"].shape[1] > 1:  # the prompt
            layer = cache.layers[module.layer_idx]
            layer.keys, layer.values = layer.keys[..., -4:, :].clone(), layer.values[..., -4:, :].clone()

    with ExitStack() as undo:
        for block in model.anatomy.blocks:
            attention = block.attention.modules[0]
            undo.callback(attention.register_forward_hook(evict, with_kwargs=True).remove)
        shape, row = Steps(model, batch, cache).run()
    cached = kv_cache(shape, row)
    assert (cached.layers, cached.positions) == ((7 * WIDTH,) * LAYERS, 12)
    assert cached.per_token == LAYERS * 7 * WIDTH / 12
    assert kv_cache(shape, row_as_dense(row)).per_token == LAYERS * WIDTH


def test_a_cache_that_holds_what_ran_is_dense_s(model, batch):
    shape, row = Steps(model, batch, DynamicCache(config=model.module.config), rows=2).run()
    assert all(not segment.held for segment in row)
    assert keeps_all(shape, row)
    assert kv_cache(shape, row).layers == (12 * WIDTH,) * LAYERS


def test_a_cache_of_fixed_size_is_no_smaller_than_dense_s(model, batch):
    ids = torch.randint(3, 200, (1, 7))
    options = {"cache_implementation": "static", "max_length": 20, "min_length": 20}
    with Tracer(model) as tracer, model.serving(*batch("generate", 7)):
        model.module.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
        (row,) = tracer.collect()
    shape = ModelShape.of(model)
    assert keeps_all(shape, row)
    assert kv_cache(shape, row).layers == (row[1].keys[0] * WIDTH,) * LAYERS
    assert kv_cache(shape, row_as_dense(row)).layers == kv_cache(shape, row).layers


def test_what_is_filled_for_a_layer_is_not_met_by_the_one_before(batch):
    """Where sliding and full attention take turns, their slots are of unlike length."""
    hybrid = tiny_decoder("gemma3_text")
    cache, ids = DynamicCache(config=hybrid.module.config), torch.randint(3, 200, (1, 9))
    keys = torch.zeros(1, 2, 1, 8)
    with torch.no_grad(), Tracer(hybrid) as tracer, hybrid.serving(*batch("generate", 9)):
        hybrid.module(ids, past_key_values=cache)
        block = hybrid.anatomy.blocks[3].module
        block.forward = lambda states, **arguments: arguments["past_key_values"].update(keys, keys, 3) and states
        hybrid.module(ids[:, :1], past_key_values=cache)
        _, step = tracer.collect()[0]
    assert (step.attention, step.keys) == ((1, 1, 1, 0), ())


def test_layers_out_of_the_model_hold_nothing(model, batch):
    with without_branches(model, attention=[1]):
        shape, row = Steps(model, batch, DynamicCache(config=model.module.config)).run()
    assert kv_cache(shape, row).layers == (12 * WIDTH, 0, 12 * WIDTH, 12 * WIDTH)


def test_bytes_are_those_that_can_be_reached():
    class Holder:
        def __init__(self, **parts):
            vars(self).update(parts)

    numbers = torch.zeros(4, 8)
    assert bytes_of(Holder(keys=numbers, values=numbers)) == numbers.nbytes
    assert bytes_of(Holder(keys=numbers[:2], values=numbers[2:])) == numbers.nbytes
    assert bytes_of(Holder(keys=numbers[:1])) == numbers.nbytes  # all of it stays
    assert bytes_of(Holder(keys=torch.zeros(1, 8).expand(100, 8))) == 32
    assert bytes_of(Holder(parts=[(numbers,), {"scale": torch.zeros(3)}])) == numbers.nbytes + 12
    assert bytes_of(Holder(inner=Holder(keys=numbers))) == numbers.nbytes
    assert bytes_of(Holder(model=torch.nn.Linear(4, 4), length=torch.tensor(3), cache=Holder(layers=[numbers]))) == 0


@pytest.mark.parametrize("tokens", [1, 3])
def test_drafts_and_their_verification(model, batch, tokens):
    """The model without some branches guesses, with the same cache, which loses what was not right."""
    cache = DynamicCache(config=model.module.config)
    ids = torch.randint(3, 200, (1, 8))

    def speculate():
        with torch.no_grad(), model.serving(*batch("generate", 8)) as context, Tracer(model) as tracer:
            model.module(ids, past_key_values=cache)
            for kept in (1, tokens + 1, 1):
                with without_branches(model, mlp=[1, 2]), model.drafting():
                    for _ in range(tokens):
                        model.module(ids[:, :1], past_key_values=cache)
                cache.crop(-tokens)
                with model.verifying():
                    model.module(ids[:, : tokens + 1], past_key_values=cache)
                if kept <= tokens:
                    cache.crop(kept - tokens - 1)
            assert context.decoding
            return tracer.collect()

    (row,), counted = count_flops(speculate)
    shape = ModelShape.of(model)
    assert executed_flops(shape, row).total == counted
    phases = [segment.phase for segment in row]
    assert phases == ["prefill", *[*["draft"] * tokens, "verify"] * 3]
    assert [segment.kept for segment in row if segment.phase == "verify"] == [1, tokens + 1, 1]
    written = depth(row, "decode", "draft", "verify")
    assert written.dense == (1 + tokens + 1 + 1) * LAYERS
    assert written.executed == 3 * (tokens * (LAYERS - 1) + (tokens + 1) * LAYERS)
    steps = [segment for segment in row_as_dense(row) if segment.phase == "decode"]
    assert [(step.context, step.forwards) for step in steps] == [(9, 1), (10, tokens + 1), (10 + tokens + 1, 1)]


def test_a_text_that_is_scored_in_parts(model, batch):
    """Its context first, then what follows, as decode steps of several tokens each."""
    ids, cache = torch.randint(3, 200, (1, 9)), DynamicCache(config=model.module.config)
    with torch.no_grad(), Tracer(model) as tracer, model.serving(*batch("score", 9)) as context:
        model.module(ids[:, :5], past_key_values=cache)
        context.decoding = True
        model.module(ids[:, 5:], past_key_values=cache)
        (row,) = tracer.collect()
    assert [(segment.phase, segment.context, segment.queries) for segment in row] == [("score", 5, 5), ("decode", 9, 4)]


@pytest.mark.parametrize("served", [True, False])
def test_charges(model, batch, served):
    """Of some rows, between forwards too; what nobody serves is nobody's."""
    ids = torch.randint(3, 200, (3, 5))
    with (
        torch.no_grad(),
        Tracer(model) as tracer,
        model.serving(*batch("generate", 5, 5, 5)) if served else nullcontext(),
    ):
        cache = model.module(ids).past_key_values
        model.charge("selection", macs=7, tokens=3, bytes=6.0)
        model.module(ids[:, :1], past_key_values=cache)
        if served:
            with model.context.only((0, 2)):
                model.charge("selection", macs=9)
        rows = tracer.collect()
    if not served:
        assert rows == []
        return
    work = [[segment.extra.get("selection", (0, 0, 0, 0.0)) for segment in row] for row in rows]
    assert [tuple(first) for first, _ in work] == [(0, 0, 0, 0.0)] * 3
    assert [tuple(second) for _, second in work] == [(1, 2, 3 + 5, 2.0), (1, 1, 2, 2.0), (1, 2, 2 + 4, 2.0)]
    assert model.charged is None


class Elsewhere(DynamicLayer):
    """A slot whose numbers are in no attribute of its own."""

    store: ClassVar[dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}

    def update(self, keys, values, *_, **__):
        before = self.store.get(id(self))
        if before is not None:
            keys, values = torch.cat([before[0], keys], -2), torch.cat([before[1], values], -2)
        self.store[id(self)] = keys, values
        self.is_initialized = True
        return keys, values

    def get_seq_length(self):
        return self.store[id(self)][0].shape[-2] if id(self) in self.store else 0

    def get_mask_sizes(self, query_length):
        return self.get_seq_length() + query_length, 0


def test_a_cache_that_keeps_its_numbers_elsewhere_keeps_them_all(model, batch):
    dense_shape, dense = Steps(model, batch, DynamicCache(config=model.module.config)).run()
    cache = DynamicCache(config=model.module.config)
    cache.layers = [Elsewhere() for _ in cache.layers]
    shape, row = Steps(model, batch, cache).run()
    Elsewhere.store.clear()
    assert kv_cache(shape, row) == kv_cache(dense_shape, dense)
    assert traffic(shape, row) == traffic(dense_shape, dense)
    assert all(segment.unread for segment in row)
    assert [Segment.from_json(segment.to_json()) for segment in row] == row
    assert not any(segment.unread for segment in dense + row_as_dense(row))
    # so that a run that is resumed says it too
    served = [Served((Request("t", 0, 0, 0, "loglikelihood"),), ("",), 9, 3, tuple(row))]
    assert summary({"results": {}, "samples": {}}, served, shape, None).warnings == [UNREAD]


def test_a_cache_of_fixed_size_is_dense_s_where_layers_slide(batch):
    model = tiny_decoder("gemma3_text", layers=2)
    sizes = {"max_new_tokens": 5, "min_new_tokens": 5, "cache_implementation": "static"}
    with Tracer(model) as tracer, model.serving(*batch("generate", 9)):
        model.module.generate(torch.full((1, 9), 5), do_sample=False, **sizes)
        (row,) = tracer.collect()
    shape = ModelShape.of(model)
    dense = row_as_dense(row, [layer.window for layer in shape.layers])
    assert executed_flops(shape, dense) == executed_flops(shape, row)
    assert traffic(shape, dense) == traffic(shape, row)
