"""Every built-in method passes every check, at several settings; an exception would be listed with its reason."""

from harness.contract import registry
from harness.testing import parametrize_methods

METHODS = ("dense", "layer-drop")
LOADED = ("checkpoint:path=model",)
ENGINES = (
    "int8-dynamic",
    "wanda",
    "magnitude",
    "sparse-gpt",
    "rms-fold",
    "block-sparse",
    "mue",
    "calm",
    "repair",
    "ffn-prune",
    "skip-decode",
    "ngram",
)
CHOOSING = ("knorm", "streaming", "window-attention")
ROUTED = ("dr-llm", "polar", "random-skip", "static-path")
SETTINGS = (
    "wanda:pattern=16x1,sparsity=0.75,samples=2,length=48+block-sparse:number=fp32",
    "layer-drop:layers=1+int8-dynamic",
    "layer-drop:layers=1+repair:target=text,steps=2,rows=2,length=32",
    "layer-drop:layers=1+repair:target=text,steps=2,rows=2,length=32,control=same-training",
    "int8-dynamic:linears=*.q_proj/*.mlp.*,layers=1/3,head=true",
    "layer-drop:unit=attention,count=2,samples=2,length=32",
    "layer-drop:unit=mlp,count=2,samples=2,length=32",
    "layer-drop:unit=joint,count=3,samples=2,length=32",
    "knorm:keep=0.3+ngram:tokens=4",
    "mue:quantile=0,start=0,samples=4,length=64",
    "streaming:window=5+wanda:sparsity=0.5,samples=2,length=48",
    "calm:confidence=classifier,threshold=0,decay=0,every=1,samples=20,length=24",
)


@parametrize_methods(METHODS)
def test_a_built_in_method(check):
    check()


@parametrize_methods(ENGINES, families=["llama", "gpt2"])
def test_a_built_in_method_whose_engine_is_tested_on_every_family(check):
    check()


@parametrize_methods(CHOOSING, families=["qwen3", "opt"])
def test_a_built_in_method_that_chooses_keys(check):
    check()


@parametrize_methods(ROUTED, families=["llama"])
def test_a_built_in_method_of_layer_paths(check):
    check()


@parametrize_methods(SETTINGS, families=["qwen3"])
def test_a_built_in_method_at_other_settings(check):
    check()


@parametrize_methods(LOADED, families=["llama"])
def test_a_built_in_method_that_is_another_model(check):
    check()


def test_every_built_in_method_is_checked():
    checked = {name.partition(":")[0] for name in (*METHODS, *ENGINES, *ROUTED, *LOADED, *CHOOSING)}
    assert checked == {listing.name for listing in registry.listings() if listing.built_in}
