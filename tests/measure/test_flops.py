"""FLOPs: published numbers, and equality with what the dispatcher counts."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config

from harness.contract.decoder import Decoder
from harness.measure.audit import count_flops
from harness.measure.flops import causal_flops, executed_flops
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.model.layouts import dissect
from harness.testing.tiny import EAGER_ONLY, FAMILIES, tiny_decoder, tiny_tokenizer

VARIANTS = [
    (family, attention)
    for family in FAMILIES
    for attention in ("sdpa", "eager")
    if attention == "eager" or family not in EAGER_ONLY
]


def llama(layers, hidden, inner, heads, kv_heads, vocabulary, *, tied=False):
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


QWEN = Qwen2Config(
    num_hidden_layers=24,
    hidden_size=896,
    intermediate_size=4864,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151936,
    tie_word_embeddings=True,
)
PYTHIA = GPTNeoXConfig(
    num_hidden_layers=12,
    hidden_size=768,
    intermediate_size=3072,
    num_attention_heads=12,
    vocab_size=50304,
    tie_word_embeddings=False,
)

# model: configuration, parameters, linear parameters per layer, head parameters, KV numbers per token,
# FLOPs of a decode step at context 1024, of a prefill of 512 with one row of logits: rectangle, causal
REFERENCE = {
    "Llama-3-8B": (
        llama(32, 4096, 14336, 32, 8, 128256),
        (8_030_261_248, 218_103_808, 525_336_576, 65_536),
        (15_546_187_776, 7_285_315_207_168, 7_216_729_948_160),
    ),
    "Llama-3.2-1B": (
        llama(16, 2048, 8192, 32, 8, 128256, tied=True),
        (1_235_814_400, 60_817_408, 262_668_288, 16_384),
        (2_605_711_360, 1_031_317_487_616, 1_014_171_172_864),
    ),
    "TinyLlama-1.1B": (
        llama(22, 2048, 5632, 32, 4, 32000),
        (1_100_048_384, 44_040_192, 65_536_000, 11_264),
        (2_253_389_824, 1_039_513_157_632, 1_015_936_974_848),
    ),
    "SmolLM2-135M": (
        llama(30, 576, 1536, 9, 3, 49152, tied=True),
        (134_515_008, 3_538_944, 28_311_552, 11_520),
        (339_738_624, 126_892_376_064, 117_850_374_144),
    ),
    "SmolLM2-360M": (
        llama(32, 960, 2560, 15, 5, 49152, tied=True),
        (361_821_120, 9_830_400, 47_185_920, 20_480),
        (849_346_560, 354_429_173_760, 338_354_503_680),
    ),
    "Qwen2.5-0.5B": (
        QWEN,
        (494_032_768, 14_909_440, 136_134_656, 6_144),
        (1_076_002_816, 389_235_245_056, 377_982_976_000),
    ),
    "Pythia-160m": (
        PYTHIA,
        (162_322_944, 7_077_888, 38_633_472, 18_432),
        (284_884_992, 96_714_031_104, 91_891_630_080),
    ),
    "GPT-2": (
        GPT2Config(),
        (124_439_808, 7_077_888, 38_597_376, 18_432),
        (284_812_800, 96_713_958_912, 91_891_557_888),
    ),
}


@pytest.fixture(params=REFERENCE)
def reference(request):
    """The shape of a published model, whose weights are nowhere, and its numbers."""
    config, parameters, flops = REFERENCE[request.param]
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    model = SimpleNamespace(module=module, config=config, anatomy=dissect(module))
    return ModelShape.of(model), parameters, flops


def test_shapes_of_published_models(reference):
    shape, expected, _ = reference
    layer = shape.layers[0]
    linear = layer.attention.macs + layer.mlp.macs
    kv_numbers = layer.cache_width * len(shape.layers)
    assert (shape.parameters, linear, shape.head.macs, kv_numbers) == expected
    assert shape.other.macs == 0


def test_flops_of_published_models(reference, dense_segment):
    shape, _, expected = reference
    prefill = dense_segment(len(shape.layers), 512)
    decode = dense_segment(len(shape.layers), 1, phase="decode", context=1024)
    counts = [executed_flops(shape, [decode]), executed_flops(shape, [prefill]), causal_flops(shape, [prefill])]
    assert tuple(count.total for count in counts) == expected


@pytest.fixture(scope="module")
def small():
    """The Llama whose counts are known to the last digit."""
    return tiny_decoder(
        "llama",
        hidden_size=256,
        intermediate_size=688,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=1000,
    )


def observed(model, served, run):
    """What the dispatcher counted and what the formulas give from the trace."""
    with Tracer(model) as tracer, model.serving(*served):
        _, counted = count_flops(run)
        segments = [segment for row in tracer.collect() for segment in row]
    return counted, executed_flops(ModelShape.of(model), segments)


def test_known_counts_of_a_prefill(small, batch):
    ids = torch.ones(2, 64, dtype=torch.long)
    counted, flops = observed(small, batch("score", 64, 64), lambda: small.module(ids))
    assert flops.attention_linear + flops.mlp == 708_837_376
    assert (flops.attention_scores, flops.head, flops.other) == (33_554_432, 65_536_000, 0)
    assert flops.total == counted == 807_927_808


def test_known_counts_of_a_prefill_with_one_row_of_logits(small, batch):
    ids = torch.ones(2, 64, dtype=torch.long)
    counted, flops = observed(small, batch("score", 64, 64), lambda: small.module(ids, logits_to_keep=1))
    assert flops.total == counted == 743_415_808


def test_known_counts_of_a_decode_step(small, batch):
    ids = torch.ones(2, 64, dtype=torch.long)
    with torch.no_grad(), Tracer(small) as tracer, small.serving(*batch("generate", 64, 64)):
        cache = small.module(ids).past_key_values
        _, counted = count_flops(lambda: small.module(ids[:, :1], past_key_values=cache))
        decodes = [row[1] for row in tracer.collect()]
    assert executed_flops(ModelShape.of(small), decodes).total == counted == 12_632_064


def test_known_counts_of_a_generation(small, batch):
    ids = torch.full((1, 64), 3)
    counted, flops = observed(
        small,
        batch("generate", 64),
        lambda: small.module.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False),
    )
    assert flops.total == counted == 416_006_144


@pytest.mark.parametrize(("family", "attention"), VARIANTS)
def test_scoring_equals_the_dispatchers_count(family, attention, batch):
    model = tiny_decoder(family, attention=attention)
    ids = torch.randint(3, 200, (3, 20))
    counted, flops = observed(model, batch("score", 20, 20, 13), lambda: model.module(ids))
    assert flops.total == counted


@pytest.mark.parametrize(("family", "attention"), VARIANTS)
def test_padded_generation_equals_the_dispatchers_count(family, attention, batch):
    model = tiny_decoder(family, attention=attention)
    ids = torch.randint(3, 200, (3, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    counted, flops = observed(
        model,
        batch("generate", 5, 9, 9),
        lambda: model.module.generate(ids, attention_mask=mask, max_new_tokens=7, min_new_tokens=7, do_sample=False),
    )
    assert flops.total == counted


CACHES = {
    "drafts that are rejected and cut out again": {"prompt_lookup_num_tokens": 5},
    "no cache": {"use_cache": False},
    "a cache of fixed size": {"cache_implementation": "static"},
    "a prompt that is read in parts": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("options", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize(("family", "attention"), [("llama", "sdpa"), ("gemma3_text", "eager"), ("mistral", "eager")])
def test_flops_follow_the_cache_that_attention_met(family, attention, options, batch):
    model = tiny_decoder(family, attention=attention)
    ids = torch.tensor([[3, 4, 5, 6, 7, 3, 4, 5, 6, 3, 4]])
    mask = torch.ones_like(ids)
    if "prompt_lookup_num_tokens" not in options:  # drafts are for one row without padding
        ids, mask = ids.repeat(2, 1), mask.repeat(2, 1)
        mask[0, :3] = 0
    lengths = {"max_length": 40, "min_length": 31, "do_sample": False, "pad_token_id": 0}
    counted, flops = observed(
        model,
        batch("generate", *mask.sum(1).tolist()),
        lambda: model.module.generate(ids, attention_mask=mask, **lengths, **options),
    )
    assert flops.total == counted
    ids, mask = ids[-1:], mask[-1:]  # alone, and without padding
    counted, flops = observed(
        model,
        batch("generate", ids.shape[1]),
        lambda: model.module.generate(ids, attention_mask=mask, **lengths, **options),
    )
    assert flops.total == counted


def test_chunks_on_a_sliding_cache_equal_the_dispatchers_count(batch):
    model = tiny_decoder("mistral")
    ids = torch.randint(3, 200, (1, 17))

    def run():
        cache = model.module(ids[:, :4]).past_key_values
        for start in (4, 7, 10):
            model.module(ids[:, start : start + 3], past_key_values=cache)
        model.module(ids[:, 13:], past_key_values=cache)

    counted, flops = observed(model, batch("generate", 4), run)
    assert flops.total == counted


LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "first_k_dense_replace": 2,
}
WIDTHS = {"diffllama": {}, "minicpm3": LATENT, "deepseek_v3": LATENT, "gpt_bigcode": {}}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", WIDTHS)
def test_attention_of_other_widths_than_the_configuration_has(kind, attention, batch):
    """Differential, latent and multi-query attention: FLOPs are PyTorch's, and the cache is as large as stated."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": 259, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, **sizes, **tokens, **{"num_key_value_heads": 2, **WIDTHS[kind]})
    module = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    model = Decoder(module, tiny_tokenizer(), dissect(module), "")
    ids = torch.randint(3, 200, (2, 9))
    counted, flops = observed(model, batch("score", 9, 9), lambda: module(ids))
    assert flops.total == counted
    lengths = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    counted, flops = observed(
        model,
        batch("generate", 9, 9),
        lambda: module.generate(ids, attention_mask=torch.ones_like(ids), **lengths),
    )
    assert flops.total == counted
    shape = ModelShape.of(model)
    with torch.no_grad():
        cache = module(ids[:1]).past_key_values
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert stored == 9 * sum(shape.kv_bytes(layer) for layer in range(2))


def test_projections_around_the_layers_are_counted(batch):
    model = tiny_decoder("opt", word_embed_proj_dim=16)
    ids = torch.randint(3, 200, (2, 8))
    counted, flops = observed(model, batch("score", 8, 8), lambda: model.module(ids))
    assert flops.other == 2 * 2 * 8 * (2 * 16 * 32)
    assert flops.total == counted


def test_a_layer_that_ran_on_some_tokens_costs_its_share(small, dense_segment):
    shape = ModelShape.of(small)
    whole = dense_segment(4, 10)
    part = dense_segment(4, 10, attention=(5, 5, 5, 5), mlp=(5, 5, 5, 5))
    for count in (executed_flops, causal_flops):
        all_of_it, half = count(shape, [whole]), count(shape, [part])
        assert 2 * (half.total - half.head) == all_of_it.total - all_of_it.head
