"""What methods take out of the model is off the device while memory is measured, and comes back bit for bit.

No machine here has a device: the model's tensors stay on the CPU, moves between the two are recorded.
"""

import pytest
import torch

from harness.contract.decoder import Decoder
from harness.contract.stack import parse
from harness.measure import memory
from harness.measure.memory import held, set_aside
from harness.model.reshape import Keep, narrowed
from harness.model.surgery import without_blocks, without_branches
from harness.model.weights.kernel_plan import first_kernels
from harness.model.weights.replaced import replaced
from harness.testing.subject import study_of
from harness.testing.tiny import tiny_decoder

CARD, CPU = torch.device("cuda:0"), torch.device("cpu")


class OnCard(Decoder):
    """A model that says that it is on a card."""

    @property
    def device(self) -> torch.device:
        return CARD


@pytest.fixture
def model() -> Decoder:
    plain = tiny_decoder("llama", layers=4)
    return OnCard(plain.module, plain.tokenizer, plain.anatomy, plain.fingerprint)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that left the card; those that came back count as negative."""
    recorded: list[int] = []
    away: set[int] = set()

    def move(tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
        copy = tensor.clone()
        is_back = tensor.data_ptr() in away
        recorded.append(-tensor.nbytes if is_back else tensor.nbytes)
        away.add(copy.data_ptr())
        return copy

    monkeypatch.setattr(memory, "moved", move)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return recorded


def nbytes(*modules: torch.nn.Module) -> int:
    return sum(parameter.nbytes for module in modules for parameter in module.parameters())


def methods(model: Decoder) -> dict[str, tuple[object, int]]:
    """What each way of taking weights out leaves behind, in bytes."""
    layers = model.module.model.layers
    mlp, attention = layers[1].mlp, layers[2].self_attn
    norm = nbytes(layers[2].input_layernorm)
    weight = mlp.up_proj.weight
    return {
        "layers": (without_blocks(model, [1, 3]), nbytes(layers[1], layers[3])),
        "a branch": (without_branches(model, attention=[2]), nbytes(attention) + norm),
        "neurons": (narrowed(model, {1: Keep(neurons=range(8))}), nbytes(mlp)),
        "values": (replaced(model, {"model.layers.1.mlp.up_proj.weight": torch.zeros_like(weight)}), weight.nbytes),
        "nothing": (without_blocks(model, []), 0),
    }


@pytest.mark.parametrize("name", ["layers", "a branch", "neurons", "values", "nothing"])
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_taken_out_leaves_the_device(model: Decoder, moves: list[int], name: str, fails: bool) -> None:
    attached, expected = methods(model)[name]
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    parameters = dict(model.module.named_parameters())
    dense = held(model)
    try:
        with attached, set_aside(model, dense):  # type: ignore[attr-defined]
            assert sum(moves) == expected
            model.module(torch.full((1, 8), 5))
            if fails:
                raise MemoryError
    except MemoryError:
        assert fails
    assert sum(moves) == 0
    after = dict(model.module.named_parameters())
    assert all(after[key] is parameter for key, parameter in parameters.items())
    assert after.keys() == parameters.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())


COMPUTED = ("int8-dynamic", "int8-weight-only", "int4-weight-only:group=16", "fp8", "block-sparse:sparsity=0.5")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", COMPUTED)
def test_weights_that_a_method_computes_otherwise_leave_the_device(method: str, family: str, moves: list[int]) -> None:
    """Each with the kernel that is there; biases stay, as the method adds them."""
    (part,), plain = parse(method).parts, tiny_decoder(family, layers=2)
    model = OnCard(plain.module, plain.tokenizer, plain.anatomy, plain.fingerprint)
    dense, expected = held(model), sum(site.weight.nbytes for site in part.sites(model))
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    state = part.prepare(plain, study_of((part,), plain))
    ids = torch.full((1, 8), 5)
    with model.computed_by(first_kernels((part,), model)), part.attach(model, state):
        logits = model.module(ids).logits
        with set_aside(model, dense):
            assert sum(moves) == expected
            assert torch.equal(model.module(ids).logits, logits)
    assert sum(moves) == 0
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())


def test_nothing_moves_on_a_cpu(moves: list[int]) -> None:
    model = tiny_decoder("llama", layers=4)
    dense = held(model)
    with without_blocks(model, [1, 2]), set_aside(model, dense):
        pass
    assert moves == []


def test_tied_weights_are_held_once() -> None:
    model = tiny_decoder("gpt2", layers=2)
    tensors = held(model)
    assert len({id(tensor) for tensor in tensors}) == len(tensors)
