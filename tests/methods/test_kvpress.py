"""The presses of kvpress: each runs as the library itself runs it, or is refused with a reason."""

import sys
from contextlib import ExitStack
from importlib.util import find_spec

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.core.errors import MethodError, UnknownNameError, UnsupportedModelError
from harness.methods.cache.kvpress import REFUSED, KvPress, presses
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import tiny_decoder
from tests.methods.caches import flops
from tests.testing.failing import failing

INSTALL = "pip install 'efficiency-harness[kvpress]' && pip install --no-deps kvpress"
installed = pytest.mark.skipif(find_spec("kvpress") is None, reason=f"kvpress is not installed: {INSTALL}")
TOKENS, STEPS = 150, 8
ARGUMENTS = {
    "Chunk": "options=chunk_length:100",
    "ChunkKV": "options=chunk_length:10",
    "Composed": "inner=Knorm/TOVA",
    "Decoding": "options=compression_interval:3/target_size:100",
    "CompressionRatioDecoding": "options=compression_interval:3",
    "CAM": "options=compression_interval:3/target_size:100/merge_budget:4",
    "SimLayerKV": "options=lazy_threshold:0.1/n_recent:60",
}
"""What a press needs to act on a text of this length."""
AS_LONG = ("ThinK", "CAM", "Decoding", "CompressionRatioDecoding")
"""Presses that keep the length, or act later."""
EAGER = ("ObservedAttention",)
DRAWS = ("CAM", "LeverageScore", "Compactor", "CUR", "NonCausalAttn")
"""Presses that draw random numbers, or stand on one that does."""


def names():
    if find_spec("kvpress") is None:
        return ["Knorm"]
    import kvpress

    return presses(kvpress)


def method(name):
    given = f",{ARGUMENTS[name]}" if name in ARGUMENTS else ""
    return parse(f"kvpress:press={name},keep=0.5{given}").parts[0]


def decoder_of(name, family):
    return tiny_decoder(family, layers=2, attention="eager" if name in EAGER else "sdpa")


def ids(length=TOKENS + STEPS):
    return torch.randint(3, 259, (1, length), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def by_the_library(press, decoder, text):
    """The cache and the logits that the library's own pipeline makes, which gives true positions while it decodes."""
    cache = DynamicCache(config=decoder.config)

    def positions(module, args, kwargs):
        place = kwargs["position_ids"] if kwargs.get("position_ids") is not None else seen
        return args, {**kwargs, "cache_position": place.flatten()}

    logits = []
    with ExitStack() as undo:
        for block in decoder.anatomy.blocks:
            hook = block.attention.modules[0].register_forward_pre_hook(positions, with_kwargs=True)
            undo.callback(hook.remove)
        undo.enter_context(press(decoder.module))
        for start, end in ((0, TOKENS), *((step, step + 1) for step in range(TOKENS, TOKENS + STEPS))):
            seen = torch.arange(start, end)[None]
            given = {"position_ids": seen, "past_key_values": cache, "use_cache": True}
            logits.append(decoder.module(text[:, start:end], **given).logits[:, -1])
    return cache, torch.stack(logits)


@installed
@torch.no_grad()
@pytest.mark.parametrize("name", names())
def test_every_press_runs_as_in_the_library_or_is_refused_with_a_reason(name):
    if name in REFUSED:
        with pytest.raises(MethodError, match=f"^kvpress: {name} is not offered: .{{20,}}"):
            method(name)
        return
    chosen = method(name)
    functions = dict(ALL_ATTENTION_FUNCTIONS.items())
    for family in ("llama", "qwen3"):
        decoder, text = decoder_of(name, family), ids()
        chosen.check_model(decoder)
        before = model_snapshot(decoder)
        with chosen.attach(decoder, Prepared()):
            output = decoder.module(text[:, :TOKENS], use_cache=True)
            cache, logits = output.past_key_values, [output.logits[:, -1]]
            assert (cache.layers[1].keys.shape[2] == TOKENS) == (name in AS_LONG)
            steps = text[0, TOKENS:].view(STEPS, 1, 1)
            logits += [decoder.module(token, past_key_values=cache).logits[:, -1] for token in steps]
        assert not changes(before, model_snapshot(decoder))
        assert cache.get_seq_length() == TOKENS + STEPS
        assert torch.stack(logits).isfinite().all()
        if name not in DRAWS:
            other = decoder_of(name, family)
            expected, reference = by_the_library(chosen._made(chosen._library(), 2), other, text)
            torch.testing.assert_close(torch.stack(logits), reference, atol=1e-4, rtol=1e-4)
            for own, whole in zip(cache.layers, expected.layers, strict=True):
                assert torch.equal(own.keys.sum((2, 3)), whole.keys.sum((2, 3)))
    assert dict(ALL_ATTENTION_FUNCTIONS.items()) == functions


@installed
@torch.no_grad()
def test_what_it_cannot_be_on_is_refused():
    decoder, text = tiny_decoder("llama", layers=1), ids(20)
    with pytest.raises(UnknownNameError, match=r"unknown press of kvpress 'SnapKW'\. Did you mean 'SnapKV'"):
        KvPress(press="SnapKW").check_model(decoder)
    with pytest.raises(UnknownNameError, match="unknown option of SnapKV 'window'"):
        KvPress(press="SnapKV", options=("window:3",)).check_model(decoder)
    with pytest.raises(MethodError, match="CriticalKV cannot be made with these arguments: CriticalKVPress requires a"):
        KvPress(press="CriticalKV", inner=("ThinK",)).check_model(decoder)
    for family in ("gpt2", "mistral", "gemma3_text"):
        with pytest.raises(
            UnsupportedModelError, match=r"kvpress knows these models, and here without sliding windows"
        ):
            KvPress(press="Knorm").check_model(tiny_decoder(family, layers=1))
    short = pytest.raises(MethodError, match="press=SnapKV: the press cannot be on this text or model: Query length 20")
    with KvPress(press="SnapKV").attach(decoder, Prepared()), short:
        decoder.module(text, use_cache=True)
    mask = torch.stack([torch.arange(20) >= 0, torch.arange(20) > 3]).long()
    padded = pytest.raises(MethodError, match="know nothing of rows of unequal length: give --batch_size 1")
    with KvPress(press="Knorm").attach(decoder, Prepared()), padded:
        decoder.module(text.expand(2, -1), attention_mask=mask, use_cache=True)


@installed
@torch.no_grad()
@pytest.mark.parametrize("name", ["TOVA", "ExpectedAttention", "Decoding", "ObservedAttention"])
def test_padding_is_none_of_a_press(name):
    decoder, text = decoder_of(name, "llama"), ids()[:, :120]
    mask, options = (torch.arange(130) >= 10)[None].long(), {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True, "eos_token_id": None}
    padded = torch.cat([torch.zeros_like(text[:, :10]), text], 1)
    with method(name).attach(decoder, Prepared()):
        alone = decoder.module.generate(text, **options)
        beside = decoder.module.generate(padded, attention_mask=mask, **options)
    torch.testing.assert_close(torch.stack(beside.logits), torch.stack(alone.logits), atol=1e-3, rtol=1e-3)


@installed
@torch.no_grad()
def test_a_share_of_one_is_dense_by_every_bit():
    decoder, text = tiny_decoder("llama"), ids(20)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    dense = decoder.module.generate(text, **options, output_logits=True, return_dict_in_generate=True)
    with KvPress(press="Knorm", keep=1.0).attach(decoder, Prepared()):
        own = decoder.module.generate(text, **options, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(torch.stack(own.logits), torch.stack(dense.logits))


@installed
@pytest.mark.parametrize("name", ["TOVA", "ExpectedAttention", "KeyDiff"])
def test_the_products_of_a_press_are_counted(name):
    counted, seen = flops(method(name), ids(20))
    assert counted == seen


@installed
def test_it_passes_every_check(device):
    assert failing("kvpress:press=Knorm", ["qwen3"], device=device) == {}


@installed
@torch.no_grad()
@pytest.mark.parametrize("name", ["Decoding", "CAM"])
def test_a_text_does_not_depend_on_those_before_it(name):
    """A press that counts steps counts those of each text."""
    decoder, text = tiny_decoder("llama", layers=2), ids()

    def read(steps):
        cache = decoder.module(text[:, :TOKENS], use_cache=True).past_key_values
        tokens = text[0, TOKENS : TOKENS + steps].view(steps, 1, 1)
        logits = [decoder.module(token, past_key_values=cache).logits for token in tokens]
        return torch.cat(logits), [layer.keys.shape[2] for layer in cache.layers]

    with method(name).attach(decoder, Prepared()):
        alone = read(5)
    with method(name).attach(decoder, Prepared()):
        read(2)
        logits, entries = read(5)
    assert torch.equal(logits, alone[0])
    assert entries == alone[1] == [102, 102]


def test_without_the_library_the_command_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "kvpress", None)
    with pytest.raises(MethodError, match=r"kvpress needs the library kvpress .*: pip install 'efficiency-harness"):
        KvPress(press="Knorm").check_model(tiny_decoder("llama", layers=1))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("press=AdaKV", "AdaKV is not offered: it hides entries head by head"),
        ("press=KVzipPress", "KVzipPress is not offered: it reads the text again"),
        ("press=Block,inner=QFilter", "QFilter is not offered: it loads tables or weights by the model's name"),
        ("press=Knorm,keep=0", "keep='0' is not valid"),
        ("press=Knorm,options=window", "option 'window' is not of the form name:value"),
    ],
)
def test_what_is_no_press_is_refused(given, says):
    with pytest.raises(MethodError, match=f"^kvpress: {says}"):
        parse(f"kvpress:{given}")
