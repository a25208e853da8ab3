"""Every built-in method passes every check, at several settings; an exception would be listed with its reason."""

from harness import registry
from harness.testing import parametrize_methods

METHODS = ("dense", "layer-drop", "mue", "calm")
SETTINGS = (
    "layer-drop:unit=attention,count=2,samples=2,length=32",
    "layer-drop:unit=mlp,count=2,samples=2,length=32",
    "layer-drop:unit=joint,count=3,samples=2,length=32",
    "layer-drop:layers=0/2",
    "mue:quantile=0,start=0,samples=4,length=64",
    "calm:confidence=classifier,threshold=0,decay=0,every=1,samples=20,length=24",
)


@parametrize_methods(METHODS)
def test_a_built_in_method(check):
    check()


@parametrize_methods(SETTINGS, families=["qwen3"])
def test_a_built_in_method_at_other_settings(check):
    check()


def test_every_built_in_method_is_checked():
    assert set(METHODS) == {listing.name for listing in registry.listings() if listing.built_in}
