"""Every built-in method passes every check, at several settings; an exception would be listed with its reason."""

import pytest

from harness.contract import registry
from harness.testing import checks_for
from harness.testing.tiny import tiny_model, tiny_tokenizer
from tests.testing.failing import failing

LOADED = "checkpoint:path=model"
WEIGHTS = ("wanda", "magnitude", "random", "sparse-gpt", "rms-fold", "rotate", "shuffle", "block-sparse", "ffn-prune")
ROUNDED = ("int8-dynamic", "int8-weight-only", "int4-weight-only", "gptq", "mixed-precision", "fp8", "mx")
NUMBERS = (*ROUNDED, "awq", "hqq", "smooth-quant", "rep-quant")
DEPTH = ("dense", "mue", "calm", "repair", "skip-decode", "dr-llm", "polar", "random-skip", "static-path")
DRAFTS = ("ngram", "layer-skip", "self-spec")
KEYS = ("kv-evict", "kv-int", "streaming", "window-attention", "quest", "tidal-decode", "block-summary")
PAIRS = ("mas", "hard-attention", "chunk-select", "vertical-slash", "flex-prefill")
SLOW_WHERE_SMALL = {"quest", "tidal-decode", "block-summary"}
"""Of 2,048 keys of a small model, which the check measures, choosing costs them more time than it saves."""
SETTINGS = (
    "wanda:pattern=16x1,sparsity=0.75,samples=2,length=48+block-sparse:number=fp32",
    "layer-drop:layers=1+int8-dynamic",
    "shuffle+rotate:online=true+mx:block=16,scale=e4m3",
    "layer-drop:layers=1+repair:target=text,steps=2,rows=2,length=32",
    "layer-drop:layers=1+repair:target=text,steps=2,rows=2,length=32,control=same-training",
    "int8-dynamic:linears=*.q_proj/*.mlp.*,layers=1/3,head=true",
    "layer-drop:unit=attention,count=2,samples=2,length=32",
    "layer-drop:unit=joint,count=3,samples=2,length=32",
    "kv-evict:scorer=knorm,budget=0.3+ngram:tokens=4",
    "rep-quant:softmax=4,samples=2,length=48",
    "awq:symmetric=true,group=0,linears=*.o_proj/*.mlp.*,head=true,grid=3,samples=2,length=48",
    "smooth-quant:alpha=0,samples=2,length=48,layers=1/3",
    "mue:quantile=0,start=0,samples=4,length=64",
    "kv-evict:scorer=h2o,budget=0.4,pyramid=3",
    "streaming:window=5+wanda:sparsity=0.5,samples=2,length=48",
    "calm:confidence=classifier,threshold=0,decay=0,every=1,samples=20,length=24",
)


def test_on_every_family_of_the_checks(device):
    assert failing("layer-drop", device=device) == {}


@pytest.mark.parametrize("method", [*WEIGHTS, *NUMBERS])
def test_a_method_on_weights_where_they_are_stored_the_other_way_round(method, device):
    assert failing(method, ["gpt2"], device=device) == {}


@pytest.mark.parametrize("method", [*DEPTH, *DRAFTS])
def test_a_method_on_layers_tokens_or_text(method, device):
    assert failing(method, ["llama"], device=device) == {}


@pytest.mark.parametrize("method", KEYS)
def test_a_method_that_chooses_keys_where_positions_turn_and_where_they_are_learned(method, device):
    families = ["qwen3", "opt"]
    checks = {check.name for check in checks_for(method, families)}
    names = checks - {"saves-measurably"} if method in SLOW_WHERE_SMALL else checks
    assert failing(method, families, names, device=device) == {}


@pytest.mark.parametrize("method", PAIRS)
def test_a_method_that_chooses_pairs_of_queries_and_keys(method, device):
    assert failing(method, ["llama"], device=device) == {}


@pytest.mark.parametrize("method", SETTINGS)
def test_a_method_at_other_settings(method, device):
    assert failing(method, ["qwen3"], device=device) == {}


def test_a_method_that_is_another_model(device):
    assert failing(LOADED, ["llama"], device=device) == {}


def test_a_method_that_brings_another_model(device, tmp_path):
    tiny_model("llama", layers=2).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert failing(f"assistant:draft=2,model={tmp_path}", ["llama"], device=device) == {}


def test_every_built_in_method_is_checked():
    elsewhere = {"kvpress"}  # in tests/methods, where its library is installed
    named = {"layer-drop", "assistant", LOADED.partition(":")[0]}
    checked = {*elsewhere, *named, *WEIGHTS, *NUMBERS, *DEPTH, *DRAFTS, *KEYS, *PAIRS}
    assert checked == {listing.name for listing in registry.listings() if listing.built_in}
