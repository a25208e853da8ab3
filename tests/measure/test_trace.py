"""The tracer sees what ran, charges it to the right rows, and leaves nothing behind."""

import copy
import json
import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import CompileConfig, DynamicCache

from harness.contract.decoder import Auxiliary, Row
from harness.core.errors import TraceError
from harness.measure.audit import count_flops
from harness.measure.extra import Extra
from harness.measure.flops import causal_flops, executed_flops
from harness.measure.segment import Segment, ran_as_dense
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.measure.traffic import kv_cache_bytes
from harness.model.surgery import without_branches
from harness.testing.tiny import FAMILIES, tiny_decoder

LAYERS = 4


@pytest.fixture
def model():
    return tiny_decoder("llama", layers=LAYERS)


def tokens(rows, length):
    return torch.randint(3, 200, (rows, length))


def score(model, served, ids):
    with torch.no_grad(), Tracer(model) as tracer, model.serving(*served):
        model.module(ids)
        return tracer.collect()


def generate(model, served, ids, count, mask=None, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    lengths = {"max_new_tokens": count, "min_new_tokens": count}
    with Tracer(model) as tracer, model.serving(*served):
        model.module.generate(ids, attention_mask=mask, do_sample=False, **lengths, **options)
        return tracer.collect()


def hooks(module):
    return [
        (name, len(part._forward_hooks), len(part._forward_pre_hooks), len(part._forward_hooks_with_kwargs))
        for name, part in module.named_modules()
    ]


class Silent(nn.Module):
    """Attention that attends to nothing."""

    def forward(self, hidden_states, **kwargs):
        return torch.zeros_like(hidden_states), None


def test_a_scored_batch_is_one_segment_per_row(model, batch, dense_segment):
    first, second = score(model, batch("score", 9, 6), tokens(2, 9))
    shared = {"rows": 2, "attention_reads": (0.5,) * LAYERS, "mlp_reads": (0.5,) * LAYERS, "head_reads": 0.5}
    assert first == [dense_segment(LAYERS, 9, phase="score", head=9, **shared)]
    assert second == [dense_segment(LAYERS, 9, phase="score", head=9, padding=3, **shared)]


def test_like_decode_steps_are_one_segment(model, batch, dense_segment):
    (row,) = generate(model, batch("generate", 7), tokens(1, 7), 6)
    assert row == [
        dense_segment(LAYERS, 7),
        dense_segment(LAYERS, 1, phase="decode", context=8, forwards=5),
    ]
    assert ran_as_dense(row)


def test_left_padding_is_in_the_prefill_and_stays_in_the_context(model, batch):
    ids = tokens(2, 7)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    short, long = generate(model, batch("generate", 4, 7), ids, 3, mask)
    assert [(s.padding, s.context) for s in short] == [(3, 7), (0, 8)]
    assert [(s.padding, s.context) for s in long] == [(0, 7), (0, 8)]


def test_drafts_are_no_padding_and_leave_the_context_when_they_are_rejected(model, batch):
    ids = torch.tensor([[3, 4, 5, 6, 7, 3, 4, 5, 6, 3, 4]])
    (row,) = generate(model, batch("generate", 11), ids, 20, prompt_lookup_num_tokens=5)
    prefill, *steps = row
    assert (prefill.phase, prefill.padding) == ("prefill", 0)
    assert prefill.queries > 11  # the prompt and a draft of the tokens after it
    assert any(step.queries > 1 for step in steps)
    assert all(step.context - step.queries <= 11 + 20 for step in steps)
    assert all(step.phase == "decode" and not step.keys for step in steps)


def test_a_cache_of_fixed_size_is_met_whole(model, batch):
    ids = tokens(1, 7)
    options = {"cache_implementation": "static", "max_length": 20, "min_length": 20}
    with Tracer(model) as tracer, model.serving(*batch("generate", 7)):
        model.module.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
        prefill, *steps = tracer.collect()[0]
    size = steps[0].keys[0]
    assert size >= 19
    assert prefill.keys == ()  # of an empty cache, sdpa takes what was written
    assert sum(step.attended(layer) for step in steps for layer in range(LAYERS)) == 12 * size * LAYERS


class Evicting:
    """Hands on the last three positions of a cache that keeps all of them."""

    def __init__(self, cache):
        self.cache = cache

    def __getattr__(self, name):
        return getattr(self.cache, name)

    def update(self, *args, **kwargs):
        return [part[..., -3:, :] for part in self.cache.update(*args, **kwargs)]


def test_keys_that_attention_is_not_given_are_not_met(model, batch):
    """In two layers of four, while writing: FLOPs are those that PyTorch counts."""

    def evict(module, args, kwargs):
        if kwargs["hidden_states"].shape[1] == 1:
            kwargs = kwargs | {"past_key_values": Evicting(kwargs["past_key_values"]), "attention_mask": None}
        return args, kwargs

    for block in model.anatomy.blocks[:2]:
        block.attention.modules[0].register_forward_pre_hook(evict, with_kwargs=True)
    traced, counted = count_flops(lambda: generate(model, batch("generate", 7), tokens(1, 7), 6))
    (prefill, *steps) = traced[0]
    assert prefill.keys == ()
    assert [(s.context, s.forwards, s.keys) for s in steps] == [
        (8 + step, 1, (3, 3, 8 + step, 8 + step)) for step in range(5)
    ]
    shape = ModelShape.of(model)
    assert executed_flops(shape, traced[0]).total == counted
    assert causal_flops(shape, traced[0]).attention_scores < executed_flops(shape, traced[0]).attention_scores


def test_attention_finds_its_own_cache(model, batch):
    """The same object as without a trace, which can be copied and kept weakly, with what it had before."""
    cache = DynamicCache(config=model.module.config)
    own, seen = cache.update, []
    cache.update = lambda *args, **kwargs: own(*args, **kwargs)
    given = cache.update

    def look(module, args, kwargs):
        seen.append(kwargs["past_key_values"])
        weakref.ref(kwargs["past_key_values"])
        copy.deepcopy(kwargs["past_key_values"].layers)

    model.anatomy.blocks[0].attention.modules[0].register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad(), Tracer(model) as tracer, model.serving(*batch("generate", 5)):
        model.module(tokens(1, 5), past_key_values=cache)
        (row,) = tracer.collect()
    assert seen == [cache]
    assert seen[0] is cache
    assert vars(cache)["update"] is given
    assert ran_as_dense(row)


def test_a_trace_survives_compilation(model, batch):
    """Decode steps with a cache of fixed size, compiled as transformers compiles them on a GPU."""
    steps, sizes = [], {"cache_implementation": "static", "max_length": 12, "min_length": 12}
    config = CompileConfig(backend="eager", fullgraph=False)
    config._compile_all_devices = True
    ids = tokens(1, 7)
    for traced in (False, True):
        with Tracer(model) if traced else nullcontext(), model.serving(*batch("generate", 7)):
            mask = torch.ones_like(ids)
            written = model.module.generate(ids, attention_mask=mask, do_sample=False, compile_config=config, **sizes)
        steps.append(written.tolist())
    assert steps[0] == steps[1]


def test_where_the_first_layer_has_no_attention_the_context_grows_all_the_same(model, batch):
    """A method that leaves it out while writing: its slot in the cache is not what the sequence has."""
    first = model.anatomy.blocks[0].attention.modules[0]
    model.module.model.layers[0].self_attn = SkipsDecoding(first, model)
    (row,) = generate(model, batch("generate", 7), tokens(1, 7), 6)
    assert [(s.context, s.forwards) for s in row] == [(7, 1), (8, 5)]


class SkipsDecoding(nn.Module):
    """Attention that attends to nothing in decode steps."""

    def __init__(self, attention, model):
        super().__init__()
        self.attention = [attention]  # no submodule, which would be registered twice
        self.model = model

    def forward(self, hidden_states, **kwargs):
        if self.model.context.decoding:
            return torch.zeros_like(hidden_states), None
        return self.attention[0](hidden_states, **kwargs)


def test_a_layer_without_attention_has_no_keys(model, batch):
    """The cache has no slot for it, so nothing is read there, and decode steps stay one segment."""
    with without_branches(model, attention=[1], mlp=[]):
        (row,) = generate(model, batch("generate", 7), tokens(1, 7), 6)
    assert [(s.phase, s.forwards, s.keys) for s in row] == [("prefill", 1, ()), ("decode", 5, ())]


def test_decode_steps_that_differ_are_apart(model, batch):
    ids = tokens(1, 5)
    last = model.anatomy.blocks[-1].module
    with torch.no_grad(), Tracer(model) as tracer, model.serving(*batch("generate", 5)):
        cache = model.module(ids).past_key_values
        for step in range(6):
            model.module.model.layers = nn.ModuleList(
                block.module for block in model.anatomy.blocks if step < 4 or block.module is not last
            )
            model.module(ids[:, :1], past_key_values=cache)
        (row,) = tracer.collect()
    assert [(s.phase, s.context, s.forwards, s.attention) for s in row] == [
        ("prefill", 5, 1, (5, 5, 5, 5)),
        ("decode", 6, 4, (1, 1, 1, 1)),
        ("decode", 10, 2, (1, 1, 1, 0)),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_every_layer(family, batch):
    model = tiny_decoder(family, layers=LAYERS)
    (row,) = score(model, batch("score", 8), tokens(1, 8))
    assert ran_as_dense(row)
    assert (row[0].attention, row[0].mlp, row[0].head) == ((8,) * LAYERS, (8,) * LAYERS, 8)


def test_a_removed_layer_is_missing(model, batch, dense_segment):
    del model.module.model.layers[2]
    (row,) = score(model, batch("score", 8), tokens(1, 8))
    ran = {"attention": (8, 8, 0, 8), "mlp": (8, 8, 0, 8)}
    reads = {"attention_reads": (1.0, 1.0, 0.0, 1.0), "mlp_reads": (1.0, 1.0, 0.0, 1.0)}
    assert row == [dense_segment(LAYERS, 8, phase="score", head=8, **ran, **reads)]
    assert not ran_as_dense(row)


def test_bypassed_attention_is_missing_alone(model, batch, dense_segment):
    model.module.model.layers[1].self_attn = Silent()
    (row,) = score(model, batch("score", 8), tokens(1, 8))
    ran = {"attention": (8, 0, 8, 8), "attention_reads": (1.0, 0.0, 1.0, 1.0)}
    assert row == [dense_segment(LAYERS, 8, phase="score", head=8, **ran)]


def test_a_repeated_layer_counts_twice(model, batch):
    layers = model.module.model.layers
    model.module.model.layers = nn.ModuleList([layers[0], layers[1], layers[1], layers[2]])
    with torch.no_grad(), Tracer(model) as tracer, model.serving(*batch("score", 8)):
        model.module(tokens(1, 8), use_cache=False)
        (row,) = tracer.collect()
    assert row[0].attention == (8, 16, 8, 0)
    assert row[0].mlp_reads == (1.0, 2.0, 1.0, 0.0)


def test_rows_that_sit_out_a_layer_are_not_charged(model, batch):
    block = model.anatomy.blocks[1].module
    dense_forward = block.forward

    def partial(hidden_states, **kwargs):
        hidden_states = hidden_states.clone()
        with model.context.only((0, 2)):
            hidden_states[[0, 2]] = dense_forward(hidden_states[[0, 2]], **kwargs)
        return hidden_states

    block.forward = partial
    rows = score(model, batch("score", 8, 8, 8), tokens(3, 8))
    assert [row[0].attention for row in rows] == [(8, 8, 8, 8), (8, 0, 8, 8), (8, 8, 8, 8)]
    assert [row[0].mlp_reads[1] for row in rows] == [0.5, 0.0, 0.5]


def test_tokens_that_sit_out_a_module_are_not_charged(model, batch):
    mlp = model.anatomy.blocks[3].module.mlp
    model.module.model.layers[3].mlp = Halved(mlp)
    rows = score(model, batch("score", 8, 8), tokens(2, 8))
    assert [row[0].mlp for row in rows] == [(8, 8, 8, 4)] * 2


class Halved(nn.Module):
    """An MLP that runs on every second token, in one flat batch as some layers do."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, hidden_states):
        out = torch.zeros_like(hidden_states)
        chosen = hidden_states[:, ::2]
        out[:, ::2] = self.mlp(chosen.reshape(-1, chosen.shape[-1])).view_as(chosen)
        return out


def test_rows_that_were_not_declared_are_refused(model, batch):
    block = model.anatomy.blocks[1].module
    dense_forward = block.forward
    block.forward = lambda hidden_states, **kwargs: dense_forward(hidden_states[:2], **kwargs).repeat(2, 1, 1)
    with pytest.raises(TraceError, match="4 rows were running"):
        score(model, batch("score", 8, 8, 8, 8), tokens(4, 8))


def test_a_forward_of_other_rows_than_the_context_is_refused(model, batch):
    with pytest.raises(TraceError, match="a forward of 1 rows ran while the batch has 2"):
        score(model, batch("score", 8, 8), tokens(1, 8))


def test_a_forward_that_serves_nobody_is_ignored(model, batch):
    with torch.no_grad(), Tracer(model) as tracer:
        model.module(tokens(1, 8))
        assert tracer.collect() == []
        with model.serving(*batch("score", 5)):
            model.module(tokens(1, 5))
        model.module(tokens(1, 8))
        (row,) = tracer.collect()
    assert [(s.queries, s.forwards) for s in row] == [(5, 1)]


def test_a_new_context_starts_anew(model, batch):
    with torch.no_grad(), Tracer(model) as tracer:
        for length in (5, 9):
            with model.serving(*batch("generate", length)):
                model.module(tokens(1, length))
        (row,) = tracer.collect()
        assert [(s.phase, s.context) for s in row] == [("prefill", 9)]
        assert tracer.collect() == []


def test_a_failed_forward_leaves_nothing(model, batch):
    ids, failing = tokens(1, 5), model.anatomy.blocks[3].module
    with torch.no_grad(), Tracer(model) as tracer, model.serving(*batch("score", 5)):
        failing.forward = lambda *args, **kwargs: 1 / 0
        with pytest.raises(ZeroDivisionError):
            model.module(ids)
        del failing.forward
        model.module(ids)
        (row,) = tracer.collect()
    assert ran_as_dense(row)
    assert len(row) == 1


def test_methods_can_tell_decode_from_prefill(model, batch):
    decoding = []
    probe = model.module.register_forward_pre_hook(lambda *_: decoding.append(model.context.decoding))
    generate(model, batch("generate", 5), tokens(1, 5), 3)
    generate(model, batch("generate", 5), tokens(1, 5), 3, prefill_chunk_size=2)
    generate(model, batch("generate", 5), tokens(1, 5), 3, use_cache=False)
    score(model, batch("score", 5), tokens(1, 5))
    probe.remove()
    in_parts = [False, False, False, True, True]
    assert decoding == [False, True, True, *in_parts, False, True, True, False]


def test_embeddings_may_be_the_input(model):
    with torch.no_grad(), Tracer(model) as tracer, model.serving([Row("text", 0, (0,), 6, 6)], "score"):
        model.module(inputs_embeds=model.anatomy.embedding(tokens(1, 6)))
        (row,) = tracer.collect()
    assert row[0].queries == 6


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_gone_afterwards(model, fails):
    before = hooks(model.module)
    try:
        with Tracer(model):
            assert hooks(model.module) != before
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert hooks(model.module) == before


def test_outputs_are_untouched(model, batch):
    ids = tokens(2, 8)
    with torch.no_grad():
        bare = model.module(ids).logits
        with Tracer(model), model.serving(*batch("score", 8, 8)):
            assert torch.equal(model.module(ids).logits, bare)


class Pooled(nn.Module):
    """A router: one decision for each row, from the mean of its states."""

    def __init__(self, width):
        super().__init__()
        self.score = nn.Linear(width, 3)

    def forward(self, states):
        return self.score(states.mean(1))


@pytest.mark.parametrize("rows", [1, 2])
def test_modules_that_a_method_adds_are_charged(model, batch, dense_segment, rows):
    router, fill = Pooled(32), nn.Linear(32, 2 * 16, bias=False)
    model.auxiliaries += [Auxiliary(router, "router"), Auxiliary(fill, "fill", layer=2)]
    block = model.anatomy.blocks[1].module

    def around(_, args):
        router(args[0])
        fill(args[0])

    handle = block.register_forward_pre_hook(around)
    traced, flops = count_flops(lambda: score(model, batch("score", *[8] * rows), tokens(rows, 8)))
    handle.remove()
    share = {"rows": rows, "attention_reads": (1 / rows,) * LAYERS, "mlp_reads": (1 / rows,) * LAYERS}
    extra = {"router": Extra(1, 1, 96, 4 * 96 / rows), "fill": Extra(8, 1, 8 * 32 * 32, 4 * 32 * 32 / rows)}
    held = (8 * ModelShape.of(model).kv_bytes(0),) * LAYERS  # what was projected is not put into the cache
    added = {"fill": (0, 0, 8, 0), "extra": extra, "held": held}
    expected = dense_segment(LAYERS, 8, phase="score", head=8, head_reads=1 / rows, **added, **share)
    assert traced == [[expected]] * rows
    assert Segment.from_json(json.loads(json.dumps(expected.to_json()))) == expected
    shape = ModelShape.of(model)
    executed = [executed_flops(shape, row) for row in traced]
    assert sum(one.total for one in executed) == flops
    assert executed[0].extra == {"router": 2 * 96, "fill": 2 * 8 * 32 * 32}
    assert kv_cache_bytes(shape, traced[0]) == 8 * LAYERS * shape.kv_bytes(0)
    assert kv_cache_bytes(shape, [replace(traced[0][0], held=())]) == 8 * (LAYERS + 1) * shape.kv_bytes(0)
    assert not ran_as_dense(traced[0])
