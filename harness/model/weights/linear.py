"""Replacement implementations of a model's linear layers, installed for the duration of a ``with`` block.

The model's own module stays where it is: its forward becomes that of the replacement, and its weight is set aside. So
traces, other engines and surgery, which know the module by hook or by place, still see it run. A tied weight stays with
the embedding.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.contract.decoder import Decoder
from harness.contract.facts import Savings
from harness.contract.linears import LINEAR
from harness.contract.parameters import Pattern
from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.weights.replaced import Place, dense_names, replace, zeros


class ReplacementLayer(nn.Module):
    """What computes a linear layer instead of the dense product.

    Its tensors, except one named ``bias``, are what a pass over the weights reads.

    Attributes:
        kernel: what multiplies, in words, for the record; it names the instruction set where the project's own code
            chooses one.
        savings: whether that is real on this machine.
        macs_per_token: multiply-accumulates that the kernel does per token.
        weight_count: number of weights, as a model's parameters are counted.
        opaque_bytes: bytes of weights in opaque tensors, which have no storage that could be counted or saved.
        bits: of a weight and of an activation where both are rounded to so many; None: they are not.
        format_bytes: bytes that the weights would take, packed, where floats are multiplied in their place; else None.
    """

    kernel: str
    savings: Savings
    macs_per_token: int
    weight_count: int
    opaque_bytes: int = 0
    bits: int | None = None
    format_bytes: int | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes read by one pass over the weights, scales and indices included."""
        tensors = [*self.named_parameters(), *self.named_buffers()]
        return self.opaque_bytes + sum(tensor.nbytes for name, tensor in tensors if name != "bias")


@dataclass(frozen=True, eq=False)
class Site:
    """A linear layer of the model.

    Attributes:
        name: its path in the dense model, such as "model.layers.0.mlp.up_proj".
        layer: the dense model's index of its decoder layer; None for the head.
        place: the same layer whatever other methods take out: that index and the path within the decoder layer, such
            as "0.mlp.up_proj"; "head".
    """

    name: str
    layer: int | None
    module: nn.Module
    place: str

    @property
    def weight(self) -> torch.Tensor:
        """Its weight, of shape [out, in]; a view where the module keeps it transposed."""
        return self.stored(cast("torch.Tensor", self.module.weight).detach())

    @property
    def bias(self) -> torch.Tensor | None:
        """Its bias, of shape [out]."""
        bias = cast("torch.Tensor | None", getattr(self.module, "bias", None))
        return None if bias is None else bias.detach()

    def stored(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight [out, in] as the module keeps it, or back."""
        return weight.T if isinstance(self.module, Conv1D) else weight


def sites(
    model: Decoder, patterns: Sequence[str] = ("*",), *, layers: Iterable[int] = (), head: bool = False
) -> list[Site]:
    """The linear layers of the decoder layers that are in the model now, in order, and the head if it is asked for.

    Args:
        patterns: take those whose name fits one of these; the head needs none.
        layers: take these decoder layers alone, by their indices in the dense model; all of them where it is empty.

    Raises:
        MethodError: a pattern or an index that fits nothing, or a linear layer that another method computes already.
        UnsupportedModelError: a pattern that fits experts, which are no linear layers.
    """
    count = len(model.anatomy.blocks)
    wanted = set(layers) or set(range(count))
    if beyond := sorted(wanted - set(range(count))):
        raise MethodError(f"there is no layer {beyond[0]}; the model's layers are 0 to {count - 1}")
    places = {
        part: (block.index, f"{block.index}.{path}")
        for block in model.live
        for path, part in block.module.named_modules()
    }
    names = dense_names(model)
    every = [
        Site(name, places[module][0], module, places[module][1])
        for module, name in names.items()
        if isinstance(module, LINEAR) and module in places
    ]
    _refuse_experts(model, patterns, wanted)
    for pattern in patterns:
        if not any(fnmatchcase(site.name, pattern) for site in every):
            first = ", ".join(site.name for site in every[:3])
            raise MethodError(f"no linear layer is named {pattern!r}; they are named {first}, ...")
    chosen = [
        site for site in every if site.layer in wanted and any(fnmatchcase(site.name, pattern) for pattern in patterns)
    ]
    if head:
        chosen.append(Site(names[model.anatomy.head], None, model.anatomy.head, "head"))
    for site in chosen:
        if (replacement := computed_by(site.module)) is not None:
            raise MethodError(
                f"{site.name} is computed by {replacement.kernel} already, and one method computes a linear layer: "
                "give each its own layers or linears, or name a method that prunes before the one that computes"
            )
    return chosen


def _refuse_experts(model: Decoder, patterns: Sequence[str], layers: set[int]) -> None:
    """Refuse patterns that would leave experts out in silence."""
    paths = {module: name for name, module in model.module.named_modules()}
    for block in model.live:
        experts = block.mlp.experts if block.index in layers else None
        if experts is None:
            continue
        for name, _ in experts.module.named_parameters():
            if any(fnmatchcase(path := f"{paths[experts.module]}.{name}", pattern) for pattern in patterns):
                raise UnsupportedModelError(
                    f"{model.kind}: {path} holds the "
                    "weights of all experts of a layer in one tensor, which methods that change linear layers do not "
                    "reach; give patterns that fit none, such as linears=*self_attn*"
                )


def computed_by(module: nn.Module) -> ReplacementLayer | None:
    """The replacement that computes a linear layer, if there is one."""
    return cast("ReplacementLayer | None", module._modules.get("computed_by"))


@contextmanager
def installed(replacements: Iterable[tuple[Site, ReplacementLayer]]) -> Iterator[None]:
    """Let replacements compute linear layers of the model; they are taken one by one as they are made."""
    with ExitStack() as undo:
        for site, replacement in replacements:
            undo.callback(_restore, site.module, dict(site.module._parameters), vars(site.module).get("forward"))
            del site.module._parameters["weight"]
            site.module.add_module("computed_by", replacement)
            vars(site.module)["forward"] = replacement.forward
        yield


def _restore(module: nn.Module, parameters: dict[str, Any], forward: Any) -> None:
    module._parameters.clear()  # in their old order again
    module._parameters.update(parameters)
    del module._modules["computed_by"]
    del vars(module)["forward"]
    if forward is not None:
        vars(module)["forward"] = forward


@contextmanager
def zeroed(weights: Iterable[tuple[Site, torch.Tensor, Pattern]]) -> Iterator[None]:
    """Give linear layers weights with zeros among them, for the dense product to multiply.

    Args:
        weights: by site, the weight [out, in], and the pattern that its zeros come in, for the record; they are taken
            one by one as they are made.
    """
    with ExitStack() as undo:
        for site, weight, pattern in weights:
            replace(undo, Place(site.module, "weight"), site.stored(weight), pattern)
        yield


def masked(masks: Iterable[tuple[Site, torch.Tensor, Pattern]]) -> AbstractContextManager[None]:
    """``zeroed`` for weights that change in nothing else.

    Args:
        masks: by site, which weights stay, bool [out, in], and the pattern.
    """
    return zeroed((site, site.weight * mask, pattern) for site, mask, pattern in masks)


def kernel_counts(model: Decoder) -> dict[str, int]:
    """The kernels that compute the linear layers that a method changed, with how many each computes."""
    return dict(Counter(kernel for kernel, _ in changed(model)))


def changed(model: Decoder) -> Iterator[tuple[str, Savings]]:
    """Kernel and savings of every linear layer that a method changed."""
    for module in model.module.modules():
        if (replacement := computed_by(module)) is not None:
            yield replacement.kernel, replacement.savings
        elif pattern := zeros(module):
            yield dense_over(pattern), Savings.SIMULATED


def dense_over(pattern: Pattern) -> str:
    """What the dense product over zeros in a pattern is called in the record."""
    return f"dense product over {pattern} zeros"
