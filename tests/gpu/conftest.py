"""Models large enough for a card to show something, and what is left out without one."""

from pathlib import Path

import pytest

MIDDLE = {"hidden_size": 1024, "intermediate_size": 2816, "head_dim": 64, "num_attention_heads": 16}
LAYERS = 8


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is of the suite for a GPU."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def card(device: str) -> str:
    """The device, where it is a GPU with CUDA."""
    if not device.startswith("cuda"):
        pytest.skip(f"what a GPU with CUDA shows; the device is {device}")
    return device


@pytest.fixture(scope="session")
def middle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 8 layers and some 90 million weights, with its tokenizer."""
    from harness.testing.tiny import tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("models") / "middle-llama"
    tiny_model("llama", layers=LAYERS, **MIDDLE).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def names() -> list[str]:
    """The built-in methods that are not another checkpoint, in the order of their names."""
    from harness.contract import registry

    return sorted(each.name for each in registry.listings() if each.built_in and each.name != "checkpoint")
