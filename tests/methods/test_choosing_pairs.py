"""Methods that choose pairs of queries and keys: decoding is recomputation, and padding moves nothing."""

from contextlib import ExitStack

import pytest
import torch

from harness.contract.facts import Savings
from harness.contract.prepared import Prepared
from harness.contract.stack import Stack
from harness.contract.study import Study
from harness.core.errors import MethodError, UnsupportedModelError
from harness.methods.sparse.block_summary import BlockSummary
from harness.methods.sparse.chunk_select import ChunkSelect
from harness.methods.sparse.flex_prefill import FlexPrefill
from harness.methods.sparse.hard_attention import HardAttention
from harness.methods.sparse.mas import Mas
from harness.methods.sparse.quest import Quest
from harness.methods.sparse.tidal_decode import TidalDecode
from harness.methods.sparse.vertical_slash import VerticalSlash
from harness.model.attention import attending, full_layers
from harness.model.sparse_attention import gather_kernels
from harness.model.weights.kernel_plan import plan_kernels
from harness.model.weights.savings import savings
from harness.testing.serve import Text, generate, score
from harness.testing.tiny import EAGER_ONLY, FAMILIES, tiny_decoder
from tests.benchmarks.architectures import dense

DRAW = torch.Generator().manual_seed(4)
TEXTS = [Text(tuple(torch.randint(3, 259, (length,), generator=DRAW).tolist())) for length in (13, 9, 16)]
FULL = Prepared(facts={"full": [1], "layers": [1, 3]})

BOTH_PHASES = (
    Mas(window=3, sinks=1),
    HardAttention(top=2),
    ChunkSelect(size=3, top=1, sinks=1, window=2),
    BlockSummary(size=3),
)
DECODING = (
    Quest(budget=6, page=3, dense=1),
    TidalDecode(top=4, choose=(1,)),
    TidalDecode(top=4, choose=(1,), share="layer"),
)
PREFILL = (
    VerticalSlash(columns=3, diagonals=2, queries=4, sinks=1, window=1),
    FlexPrefill(alpha=0.3, least=1, queries=4, sinks=1, window=1),
)


def decoder_of(family):
    """In double precision, so that no choice among scores hangs on how a processor rounds."""
    decoder = tiny_decoder(family, attention="eager" if family in EAGER_ONLY else "sdpa")
    decoder.module.double()
    return decoder


def offered(decoder, method):
    try:
        method.check_model(decoder)
    except (MethodError, UnsupportedModelError):
        return False
    return True


def near(logits, expected):
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_on_every_layout_a_row_is_alone_what_it_is_among_others_and_decoded_what_it_is_at_once(family):
    decoder = decoder_of(family)
    for method in (*BOTH_PHASES, *DECODING, *PREFILL):
        if not offered(decoder, method):
            capped = getattr(decoder.config, "attn_logit_softcapping", None) is not None
            assert capped or len(full_layers(decoder)) < 4, method.label
            continue
        with method.attach(decoder, FULL):
            together = generate(decoder, TEXTS)
            for row, text in enumerate(TEXTS):
                near(together.row(row), generate(decoder, [text]).row(0))
                if method not in DECODING:
                    whole = score(decoder, [Text(text.prompt, tuple(together.tokens[row][:-1]))])
                    near(together.row(row), whole.row(0)[len(text.prompt) - 1 :])


@pytest.mark.parametrize("method", [*BOTH_PHASES, *DECODING, *PREFILL], ids=lambda method: method.label)
def test_it_leaves_something_out(method):
    """Or what was compared above would be dense; and it is causal."""
    decoder = decoder_of("llama")
    alone = generate(decoder, TEXTS).row(0)
    with method.attach(decoder, FULL):
        sparse = generate(decoder, TEXTS).row(0)
    assert (sparse - alone).abs().max() > 1e-4


CHANGES = {
    "as it was": lambda cache: None,
    "another order": lambda cache: cache.reorder_cache(torch.tensor([2, 0, 1])),
    "repeated": lambda cache: cache.batch_select_indices(torch.tensor([1, 1, 1])),
    "taken back": lambda cache: cache.crop(-4),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", [Quest(budget=6, page=3, dense=0), BlockSummary(size=3)], ids=lambda each: each.name)
def test_what_is_kept_of_blocks_is_that_of_the_keys_that_are_there(method, change):
    """Thrown away and made anew, it is the same, whatever happened to the rows of the cache in the meantime."""
    decoder = decoder_of("llama")
    following = torch.randint(3, 259, (3, 14), generator=torch.Generator().manual_seed(5))
    with method.attach(decoder, Prepared()):
        cache = decoder.module(torch.tensor([text.prompt[:9] for text in TEXTS]), use_cache=True).past_key_values

        def written(step):
            return decoder.module(following[:, step : step + 1], past_key_values=cache, use_cache=True).logits

        for step in range(14):
            if step == 6:
                CHANGES[change](cache)
            logits = written(step)
        cache.crop(-1)
        for layer in cache.layers:
            del layer.of_blocks
        near(logits, written(13))


@torch.no_grad()
def test_what_is_kept_of_pages_is_made_once(monkeypatch):
    from harness.model.sparse_attention import pages

    made = []
    bounds = pages.bounds
    monkeypatch.setattr(pages, "bounds", lambda k, v: made.append(k.shape[2]) or bounds(k, v))
    decoder = decoder_of("llama")
    with Quest(budget=6, page=3, dense=3).attach(decoder, Prepared()):
        generate(decoder, [Text(TEXTS[0].prompt[:12])], steps=8)  # reads 7 tokens after 12
    assert made == [4, 1, 1]  # pages, of the one layer that reads them


@torch.no_grad()
def test_attention_weights_are_refused():
    decoder = tiny_decoder("llama", layers=1, attention="eager")
    ids = torch.tensor([TEXTS[0].prompt])
    refused = pytest.raises(
        MethodError, match=r"^mine: its attention has no weights to show .*leave output_attentions out"
    )
    with attending(decoder, dense, name="mine"), refused:
        decoder.module(ids, output_attentions=True)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Quest(page=0), "page=0 is not valid: Input should be greater than or equal to 1"),
        (lambda: Quest(budget=8), "budget=8 is not in whole pages of 16 keys; the nearest that is: 16"),
        (lambda: Quest(budget=0), "budget=0 is not valid"),
        (lambda: BlockSummary(size=0), "size=0 is not valid"),
        (lambda: ChunkSelect(top=0), "top=0 is not valid"),
        (lambda: TidalDecode(top=-1), "top=-1 is not valid"),
        (lambda: TidalDecode(share="model"), "share='model' is not valid"),
        (lambda: FlexPrefill(alpha=0), "alpha=0 is not valid"),
        (lambda: FlexPrefill(alpha=1.5), "alpha=1.5 is not valid"),
        (lambda: VerticalSlash(queries=0), "queries=0 is not valid"),
        (lambda: HardAttention(share=0), "share=0 is not valid"),
        (lambda: Mas(window=0), "window=0 is not valid"),
    ],
)
def test_what_no_attention_can_be_is_refused(make, says):
    with pytest.raises(MethodError, match=says):
        make()


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Quest(dense=4), "quest: dense=4 leaves no layer that reads pages; give fewer"),
        (TidalDecode(choose=(3,)), "tidal-decode: no layer after layer 3 reads what is chosen there"),
        (TidalDecode(choose=(0, 9)), "tidal-decode: layer 9 is none that reads all keys; choose among 0, 1, 2, 3"),
        (Mas(full=4), "mas: 4 layers with full attention leave none with a window; give at most 3"),
        (Mas(layers=(0, 7)), "mas: layer 7 is none that reads all keys"),
        (HardAttention(count=5), "hard-attention: count=5, and 4 layers read all keys"),
        (ChunkSelect(layers=(4,)), "chunk-select: layer 4 is none that reads all keys"),
    ],
    ids=lambda each: getattr(each, "label", ""),
)
def test_what_a_model_lacks_is_refused(method, says):
    with pytest.raises(MethodError, match=says):
        method.check_model(tiny_decoder("llama"))


@pytest.mark.parametrize("method", [*BOTH_PHASES, *DECODING, *PREFILL], ids=lambda method: method.label)
def test_models_that_it_cannot_be_on_are_refused(method):
    with pytest.raises(UnsupportedModelError, match="caps attention scores"):
        method.check_model(tiny_decoder("gemma2"))
    with pytest.raises(MethodError, match=r"every layer of this model has a sliding window already"):
        method.check_model(tiny_decoder("mistral"))


@pytest.mark.parametrize(("layers", "chosen"), [(4, (1, 2)), (12, (1, 5)), (30, (2, 12)), (32, (2, 13))])
def test_layers_choose_where_the_paper_has_them(layers, chosen):
    decoder = tiny_decoder("llama", layers=layers)
    assert TidalDecode()._choosing(decoder) == chosen
    assert TidalDecode().chosen(decoder)[0] == chosen[0]


def test_a_greedy_choice_takes_the_layer_of_least_loss_each_time():
    decoder = decoder_of("llama")
    study = Study(("The keeper of the light wrote down every ship that passed, and its flag. " * 8,), "a test")
    for method, kept in (
        (Mas(full=2, window=2, sinks=1, samples=2, length=24), "full"),
        (HardAttention(top=1, count=2, samples=2, length=24), "layers"),
    ):
        facts = method.prepare(decoder, study).facts
        windows = list(method.windows(decoder, study))
        losses = {layer: loss_of(decoder, method, kept, [layer], windows) for layer in range(4)}
        first = min(losses, key=losses.get)
        second = {
            layer: loss_of(decoder, method, kept, [first, layer], windows) for layer in range(4) if layer != first
        }
        assert facts[kept] == [first, min(second, key=second.get)]
        before = loss_of(decoder, method, kept, [], windows)
        assert facts["losses"] == pytest.approx([before, losses[first], min(second.values())], abs=1e-6)


@torch.no_grad()
def loss_of(decoder, method, kept, layers, windows):
    with method.attach(decoder, Prepared(facts={kept: layers})):
        total = [-decoder.module(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]) for ids in windows]
    return float(torch.cat(total).mean())


def test_savings_are_real_where_the_kernel_runs_and_simulated_elsewhere(monkeypatch):
    decoder = tiny_decoder("llama")
    stack = Stack((Quest(budget=6, page=3, dense=1),))
    runs = not isinstance(gather_kernels.best(), str)
    assert savings(stack, decoder) is (Savings.REAL if runs else Savings.SIMULATED)
    [kernel] = plan_kernels(stack.parts, decoder, "cpu").by_layer
    assert kernel["quest"].startswith("gather attention on" if runs else "simulated")
    decoder.module.bfloat16()
    assert savings(stack, decoder) is Savings.SIMULATED
    plan = plan_kernels(stack.parts, decoder, "cpu")
    assert plan.by_layer == [{"quest": "simulated"}]
    [note] = plan.notes
    assert note.startswith("quest saves nothing here: its kernel is for float32")
    monkeypatch.setattr(gather_kernels, "best", lambda: "no C compiler")
    decoder.module.float()
    assert savings(Stack((TidalDecode(),)), decoder) is Savings.SIMULATED
    with ExitStack() as undo:  # and it still runs
        undo.enter_context(stack.parts[0].attach(decoder, Prepared()))
        generate(decoder, TEXTS)
