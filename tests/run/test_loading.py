"""Where a model goes: one device, several, or none that could hold it; each refusal is one sentence."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from harness.contract.stack import parse
from harness.core.errors import HarnessError, MethodError, ModelError
from harness.model.source import BUNDLED
from harness.run import loading
from harness.run.loading import device_of, load, require_on_cards, require_spanning, source_of, why_no_cuda
from harness.run.spec import ModelSettings
from tests.silent import Silent

SETTINGS = ModelSettings(pretrained=str(BUNDLED), device="cpu")


@pytest.mark.parametrize(
    ("cuda", "driver", "said"),
    [
        (None, None, "is built for the CPU alone, without CUDA"),
        (None, "580.1", "is built for the CPU alone, without CUDA"),
        ("12.8", None, "this machine has no CUDA device that torch can use"),
        ("13.0", "535.1", "cannot use the driver 535.1: it is built for CUDA 13.0"),
    ],
)
def test_no_cuda_is_one_sentence(
    cuda: str | None,
    driver: str | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    def unavailable() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", UserWarning, stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    monkeypatch.setattr(loading, "driver_version", lambda: driver)
    assert said in str(why_no_cuda())
    with pytest.raises(HarnessError, match="--device cuda:1: ") as raised:
        device_of(ModelSettings(pretrained="x", device="cuda:1"))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not recwarn.list


def test_without_a_gpu_a_device_map_is_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device_map in ("auto", {"": "cpu"}):
        settings = SETTINGS.model_copy(update={"model_args": {"device_map": device_map}})
        lm = load(settings, source_of(settings), "cpu", Silent())
        assert [str(device) for device in lm.decoder.devices] == ["cpu"]


def test_parallelize_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = SETTINGS.model_copy(update={"model_args": {"parallelize": True}})
    with pytest.raises(ModelError, match="parallelize=True: "):
        load(settings, source_of(settings), "cpu", Silent())


def mapped(**places: object) -> SimpleNamespace:
    return SimpleNamespace(module=SimpleNamespace(hf_device_map=places))


@pytest.mark.parametrize("places", [{"head": 0, "layers": "cpu"}, {"head": "disk"}, {"head": 0, "layers": "disk"}])
def test_a_model_that_does_not_fit_is_refused(places: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="too small for the model"):
        require_on_cards(mapped(**places))  # type: ignore[arg-type]


@pytest.mark.parametrize("places", [{}, {"all": 0}, {"all": "cpu"}, {"head": 0, "layers": 1}])
def test_cards_alone_hold_a_model(places: dict[str, object]) -> None:
    require_on_cards(mapped(**places))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["dense", "layer-drop:count=2", "ffn-prune", "magnitude"])
def test_a_method_whose_parts_stay_with_their_layers_spans_devices(method: str) -> None:
    spread = SimpleNamespace(devices=[torch.device("cuda:0"), torch.device("cuda:1")])
    require_spanning(spread, parse(method).parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["dr-llm", "calm", "layer-drop:count=2+mue"])
def test_another_is_refused_by_name_on_a_spread_model(method: str) -> None:
    spread = SimpleNamespace(devices=[torch.device("cuda:0"), torch.device("cuda:1")])
    with pytest.raises(MethodError, match=r"cannot be on a model that is spread over devices \(cuda:0, cuda:1\)"):
        require_spanning(spread, parse(method).parts)  # type: ignore[arg-type]
    require_spanning(SimpleNamespace(devices=[torch.device("cuda:1")]), parse(method).parts)  # type: ignore[arg-type]
