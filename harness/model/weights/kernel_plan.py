"""What computes the linear layers of a stack of methods, settled before anything runs: it is a part of the run's id."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from harness.contract.decoder import Decoder
from harness.contract.method import Method
from harness.core.errors import SpecError, UnknownNameError
from harness.model.weights.choice import MARGIN, Decision, choose, fastest, is_faster, ratios
from harness.model.weights.computations import (
    DENSE,
    STORED,
    TOKENS,
    ChoosesKernels,
    Computation,
    Computations,
    HasKernels,
    HasOwnKernel,
    Layer,
)
from harness.model.weights.linear import Site

_TOO_SLOW: Final = f"{MARGIN:.0%} faster than dense here"


@dataclass(frozen=True)
class KernelPlan:
    """What computes the linear layers of a stack.

    Attributes:
        by_place: the computation of each linear layer, by ``Site.place``; what ``Decoder.kernels`` takes.
        by_layer: the same by what a layer is, for each method that has kernels, and the kernel of each method that has
            one of its own; what identifies a run.
        notes: what a reader must know, in sentences: where the product is dense, or the kernel slower than dense.
        saves: no kernel was asked for by name that is slower than dense here.
        asked: what was asked for by name, where a method has it; what is said of a run depends on it, and so does the
            run's id, though what runs may be the machine's own choice.
    """

    by_place: dict[str, str] = field(default_factory=dict)
    by_layer: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    saves: bool = True
    asked: str | None = None


@dataclass(frozen=True)
class _Part:
    """What computes the linear layers of one method.

    Attributes:
        decisions: by layer, what this machine is best at; none where that was not asked.
        is_asked: whether it has what was asked for by name.
    """

    method: ChoosesKernels
    names: dict[Layer, str]
    decisions: dict[Layer, Decision]
    ways: dict[Layer, Computations]
    counts: Counter[Layer]
    is_asked: bool

    @property
    def saves(self) -> bool:
        """Whether no kernel that was asked for is slower than dense at a number of tokens, for all that it gains."""
        return all(max(ratios(self.decisions[layer].times, kernel)) <= 1 for layer, kernel in self.unproven.items())

    @property
    def unproven(self) -> dict[Layer, Computation]:
        """Layers with a kernel that was asked for, and that would not have been taken for its speed."""
        unproven = {}
        for layer, decision in self.decisions.items():
            ways = self.ways[layer]
            kernel = ways.named(self.names[layer])
            if kernel is not None and kernel != ways.dense and not is_faster(ratios(decision.times, kernel)):
                unproven[layer] = kernel
        return unproven

    def notes(self) -> Iterator[str]:
        """What a reader must know, in sentences."""
        name = self.method.name
        unable = dict.fromkeys(ways.why_dense for ways in self.ways.values())
        yield from (f"{name} multiplies densely: {reason}" for reason in unable if reason)
        for layer, kernel in list(self.unproven.items())[:1]:
            slow = self.decisions[layer].described(kernel)
            yield f"{name} runs on a kernel that was asked for and is not {_TOO_SLOW}: {slow} ({layer.label})"
        dense = [
            layer
            for layer, decision in self.decisions.items()
            if decision.times and self.names[layer] == self.ways[layer].dense.name
        ]
        yield from self._by_tokens()
        for layer in dense[:1]:
            decision = self.decisions[layer]
            nearest = fastest(decision.times, self.ways[layer].able)
            yield (
                f"{name} multiplies {sum(self.counts[each] for each in dense)} of {self.counts.total()} linear layers "
                f"densely, as no kernel is {_TOO_SLOW}: {decision.described(nearest)} ({layer.label})"
            )

    def _by_tokens(self) -> Iterator[str]:
        """What is said of linear layers with a product for few tokens and another one for many."""
        layers: dict[str, list[Layer]] = {}
        for layer, name in self.names.items():
            layers.setdefault(name, []).append(layer)
        for name, alike in layers.items():
            ways, decision = self.ways[alike[0]], self.decisions.get(alike[0])
            way = ways.named(name)
            if decision is None or way is None or way.by_tokens is None:
                continue
            few, many = way.at(TOKENS[0]), way.at(TOKENS[-1])
            memory = "memory none" if ways.dense in (few, many) else "memory real"
            labels = [_speed(each, ways) for each in (few, many)]
            yield (
                f"{self.method.name} multiplies {sum(self.counts[each] for each in alike)} of {self.counts.total()} "
                f"linear layers by {name}: {memory}, decode {labels[0]}, prefill {labels[1]}"
            )


def _speed(product: Computation, ways: Computations) -> str:
    """What a product gains over dense: time, or none, as it multiplies floats."""
    return "float" if product == ways.dense or product.multiplies_floats else "real"


def plan_kernels(parts: Sequence[Method], model: Decoder, device: str, asked: str | None = None) -> KernelPlan:
    """What computes the linear layers of a model, of which shapes and types are read, and no weight.

    Args:
        asked: ``DENSE`` or a kernel's name: what the methods that have it are to take, whatever is faster.
    """
    plan, saves, is_asked = KernelPlan(), True, False
    for part, declared in _choosing(parts, model):
        layers = {site.place: layer for site, layer in declared}
        settled = _settled(part, Counter(layers.values()), device, asked)
        plan.by_place.update({place: settled.names[layer] for place, layer in layers.items()})
        plan.by_layer.append({layer.label: name for layer, name in settled.names.items()})
        plan.notes.extend(settled.notes())
        saves &= settled.saves
        is_asked |= settled.is_asked
    for method in parts:
        if isinstance(method, HasOwnKernel):
            reason = method.unable(model, device)
            plan.by_layer.append({method.name: "simulated" if reason else method.kernel})
            plan.notes.extend([f"{method.name} saves nothing here: {reason}"] if reason else [])
    return KernelPlan(plan.by_place, plan.by_layer, plan.notes, saves, asked if is_asked else None)


def first_kernels(parts: Sequence[Method], model: Decoder) -> dict[str, str]:
    """The first kernel that can run here for each linear layer, by ``Site.place``, whether it is faster or not."""
    return {
        site.place: kernel.name
        for part, declared in _choosing(parts, model)
        for site, layer in declared
        for kernel in part.computations(layer, str(model.device)).able[:1]
    }


def stored_layers(parts: Sequence[Method], model: Decoder) -> dict[str, str]:
    """What stands in each linear layer's place, by ``Site.place``, while a model is written."""
    return {
        site.place: STORED if part.computations(layer, str(model.device)).stored else DENSE
        for part, declared in _choosing(parts, model)
        for site, layer in declared
    }


def _choosing(parts: Sequence[Method], model: Decoder) -> Iterator[tuple[ChoosesKernels, list[tuple[Site, Layer]]]]:
    """The methods of a stack that choose a kernel, with the linear layers that they choose it for.

    One that need not compute a layer leaves its weight to the methods above it, where there are any.
    """
    for index, part in enumerate(parts):
        computes = isinstance(part, HasKernels) or part is parts[-1]
        if isinstance(part, ChoosesKernels) and computes and (declared := part.declared_layers(model, parts[:index])):
            yield part, declared


def _settled(method: ChoosesKernels, counts: Counter[Layer], device: str, asked: str | None) -> _Part:
    ways = {layer: method.computations(layer, device) for layer in counts}
    forced = {layer: ways[layer].named(asked) if asked else None for layer in counts}
    # how much slower than dense a kernel is that was asked for is to be known; of dense nothing is
    decisions = {layer: choose(ways[layer], layer) for layer in counts if forced[layer] != ways[layer].dense}
    names = {}
    for layer, computation in forced.items():
        if computation is None or computation.why_not is not None:  # this layer is not for it
            names[layer] = decisions[layer].kernel
        else:
            names[layer] = computation.name
    is_asked = any(computation is not None for computation in forced.values())
    return _Part(method, names, decisions, ways, counts, is_asked)


def check_asked(asked: str, parts: Sequence[Method], model: Decoder, device: str) -> None:
    """Refuse a computation that none of the methods has, or that cannot run here.

    Raises:
        UnknownNameError: none has it, with those that run here.
        SpecError: none has kernels, or the kernel cannot run here.
    """
    ways = [
        method.computations(layer, device)
        for method in parts
        if isinstance(method, ChoosesKernels)
        for _, layer in method.declared_layers(model, ())
    ]
    if not ways:
        raise SpecError(f"--kernel {asked}: none of the methods has kernels to choose from")
    every: dict[str, Computation] = {}
    for each in (each for way in ways for each in (way.dense, *way.kernels)):
        if each.name not in every or each.why_not is None:  # one layer that can take it is enough
            every[each.name] = each
    able = [DENSE, *(name for name, each in every.items() if each.why_not is None)]
    joined = {each.name for way in ways for each in way.joined}
    if asked not in (DENSE, *every, *joined):
        raise UnknownNameError("kernel", asked, able, see=f"Here there are: {'; '.join(able)}.")
    if asked in every and every[asked].why_not is not None:
        raise SpecError(f"--kernel {asked}: {every[asked].why_not}. Here there are: {'; '.join(able)}")


def computation(
    method: HasKernels, model: Decoder, site: Site, layer: Layer, ways: Computations | None = None
) -> Computation:
    """What computes a linear layer of a model: as the run's plan says, else what is fastest.

    Args:
        ways: what may compute it, where a method knows more of this one layer than of all that are like it.
    """
    ways = ways or method.computations(layer, str(model.device))
    planned = ways.named(model.kernels.get(site.place, ""))
    if planned is None or planned.why_not is not None:
        planned = ways.named(choose(ways, layer).kernel)
    assert planned is not None
    return planned
