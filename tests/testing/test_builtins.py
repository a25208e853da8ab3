"""Every built-in method passes every check, at several settings; an exception would be listed with its reason."""

from harness import registry
from harness.testing import parametrize_methods

METHODS = ("dense", "layer-drop")
ROUTED = ("dr-llm", "polar", "random-skip", "static-path")
SETTINGS = (
    "layer-drop:unit=attention,count=2,samples=2,length=32",
    "layer-drop:unit=mlp,count=2,samples=2,length=32",
    "layer-drop:unit=joint,count=3,samples=2,length=32",
    "layer-drop:layers=0/2",
)


@parametrize_methods(METHODS)
def test_a_built_in_method(check):
    check()


@parametrize_methods(SETTINGS, families=["qwen3"])
def test_a_built_in_method_at_other_settings(check):
    check()


@parametrize_methods(ROUTED, families=["llama"])
def test_a_built_in_method_of_layer_paths(check):
    """The engine's own tests go through every family."""
    check()


def test_every_built_in_method_is_checked():
    assert {*METHODS, *ROUTED} == {listing.name for listing in registry.listings() if listing.built_in}
