"""A part of the model that is not the dense model's any more, counted as it runs.

What a layer's attention or MLP costs follows from its linear layers as long as the module is the dense model's own, in
its place, and nothing but linear layers in it has been replaced. Any other branch is a *changed* one, and so may be a
layer's own code around its branches, the head, and what surrounds the layers: while it runs, the matrix products that
torch dispatches are counted by their shapes. A module that declares its work (``macs_per_token``) is believed, and what
it multiplies is not counted again.

What no operator of torch shows, such as a product in a kernel of a method's own, is declared: by ``macs_per_token``, by
``Decoder.charge``, or by a formula of the operator (``torch.utils.flop_counter.register_flop_formula``). What a branch
multiplied in which an operator without a formula ran is not known, and the operator is named. Nor is that of a part
that may run a compiled attention (``FLEX``), which torch would not compile while it is looked at.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from harness.measure.formulas import formula_of, is_unknown
from harness.measure.shape import Linears

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder

Rows = tuple[int, ...] | None
"""Rows of the batch that ran; None: all of them."""

_SECOND: Final = frozenset(("addmm", "addmm_", "addmv", "addmv_", "baddbmm", "baddbmm_", "addbmm", "addbmm_"))
"""Products whose first factor is the second argument, because something is added to them."""
FLEX: Final = "flex_attention"
"""An attention that torch compiles, and whose blocks of keys no shape shows."""
OUTSIDE: Final = -2
"""The member of what surrounds the layers, whose outputs are not all of a token each."""
IN_BLOCK: Final = -3
"""The member of a branch that a layer's own code multiplied."""


def block_slot(layer: int) -> int:
    """The slot of a layer's own code, around its branches."""
    return -1 - layer


class Counted(NamedTuple):
    """Work of one call of a module of a changed branch, over all rows that ran.

    Attributes:
        member: which module of the branch.
        tokens: the most that one of the weights was multiplied with.
        linear: multiply-accumulates of products with weights.
        products: those of the others, such as queries with keys.
        bytes: of the weights.
        shapes: of the outputs of the branch's modules.
        uncounted: operators that ran in it which nothing counts.
    """

    member: int
    tokens: int
    linear: int
    products: int
    bytes: int
    shapes: tuple[tuple[int, ...], ...]
    uncounted: tuple[str, ...] = ()


class _Sums:
    """What rows multiplied in a running part, for one slot."""

    def __init__(self) -> None:
        self.tokens: dict[Any, int] = {}  # by weight, which may be multiplied with some tokens at a time
        self.linear = self.products = self.read = 0


class _Frame:
    """A changed part that is running."""

    def __init__(self, slot: int, member: int, *, is_blind: bool) -> None:
        self.slot, self.member, self.is_blind = slot, member, is_blind
        self.depth = 0  # calls that are open: a module in its place may call the dense model's
        self.paused = 0  # modules that count for themselves that are open
        self.sums: dict[Rows, dict[int, _Sums]] = {}  # by slot: a layer's own code may do the work of its branches
        self.shapes: dict[Rows, list[tuple[int, ...]]] = {}
        self.uncounted: dict[Rows, set[str]] = {}

    def of(self, rows: Rows, slot: int) -> _Sums:
        return self.sums.setdefault(rows, {}).setdefault(slot, _Sums())


class Counter(TorchDispatchMode):
    """Counts what changed parts multiply, while one runs.

    Args:
        model: whose rows are running.
        slots: the slot of each module that is a dense branch.
        head, foreign: the slots of the head and of added work.
        count: takes the work of a call: its slot, its rows, and what they did.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        model: "Decoder",
        slots: Mapping[nn.Module, int],
        head: int,
        foreign: int,
        count: Callable[[int, Rows, Counted], None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model, self._count, self._head, self._foreign = model, count, head, foreign
        self._is_compiled = model.config._attn_implementation == FLEX
        self._frames: list[_Frame] = []
        self._watches = False  # whether operators pass through here now
        held = [*model.module.parameters(), *model.module.buffers()]
        self._held = {storage for tensor in held if (storage := _storage(tensor)) is not None}
        self._slots = {_storage(weight): slot for module, slot in slots.items() for weight in module.parameters()}

    def watch(self, slot: int, member: int, module: nn.Module, counts: Callable[[], bool]) -> Iterator[Any]:
        """Hooks that count a module of a changed branch, while ``counts`` says that somebody listens."""

        def enter(*_: Any) -> None:
            if counts():
                self._enter(slot, member)

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            self._leave(slot, output)

        # around the hooks that a method put there
        yield module.register_forward_pre_hook(enter, prepend=True)
        yield module.register_forward_hook(leave, always_call=True)

    def watch_declared(self, module: nn.Module) -> Iterator[Any]:
        """Hooks that count a linear layer that a method declares the work of."""

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            self._resume()
            frame = self._frames[-1] if self._frames else None
            if frame is not None and not frame.paused and isinstance(output, Tensor):
                tokens, linears = prod(output.shape[:-1]), Linears.of([module])
                sums = frame.of(self._rows, self._slots.get(_storage_of(module), frame.slot))
                sums.tokens[module] = sums.tokens.get(module, 0) + tokens
                sums.linear += tokens * linears.macs
                sums.read += linears.read(tokens)

        yield module.register_forward_pre_hook(self._pause)
        # before the branch's own hook, where this module is the branch
        yield module.register_forward_hook(leave, always_call=True, prepend=True)

    def leave_out(self, module: nn.Module) -> Iterator[Any]:
        """Hooks on a module that is counted elsewhere."""
        yield module.register_forward_pre_hook(self._pause)
        yield module.register_forward_hook(self._resume, always_call=True)

    def reset(self) -> None:
        """Forget what an exception left open."""
        self._frames.clear()
        self._turn()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        frame = self._frames[-1] if self._frames else None
        if frame is None or frame.paused or not isinstance(func, OpOverload):
            if frame is not None and not frame.paused and isinstance(func, HigherOrderOperator):
                frame.uncounted.setdefault(self._rows, set()).add(str(func))
            return func(*args, **kwargs)
        formula = formula_of(func)
        if formula is None:
            with self:  # what it is made of
                output = func.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
        output = func(*args, **kwargs)
        if formula is not None:
            self._add(frame, func._opname, (*args, *kwargs.values()), formula(*args, **kwargs, out_val=output) // 2)
        elif is_unknown(func):
            frame.uncounted.setdefault(self._rows, set()).add(str(func._overloadpacket))
        return output

    def _add(self, frame: _Frame, name: str, values: Iterable[Any], macs: int) -> None:
        """A product ran."""
        weights = list(self._weights(name, values))
        if not weights:
            frame.of(self._rows, frame.slot).products += macs
            return
        slots = {self._slots.get(_storage(weight)) for weight in weights} - {None}
        slot = frame.slot
        if slot < 0 and len(slots) == 1 and (branch := slots.pop()) is not None and block_slot(branch // 2) == slot:
            slot = branch
        sums = frame.of(self._rows, slot)
        sums.linear += macs
        for weight in weights:
            sizes = [size for size, stride in zip(weight.shape, weight.stride(), strict=True) if stride]
            numbers, groups = prod(sizes), sizes[0] if len(sizes) > 2 and "conv" not in name else 1
            place = _storage(weight), weight.storage_offset(), weight.numel()
            sums.tokens[place] = sums.tokens.get(place, 0) + macs * groups // max(numbers, 1)
            sums.read += numbers * weight.element_size()

    def _weights(self, name: str, values: Iterable[Any]) -> Iterator[Tensor]:
        """The factors of a product that are weights: what modules hold, and matrices that are not the first factor."""
        if "scaled_dot_product" in name or "attention" in name:
            return
        parts = [part for value in values for part in (value if isinstance(value, list | tuple) else (value,))]
        first = name in _SECOND
        for place, tensor in enumerate(part for part in parts if isinstance(part, Tensor)):
            if tensor.layout is not torch.strided or tensor.ndim < 2:
                continue
            is_matrix = tensor.ndim == 2 or (tensor.ndim == 3 and (len(tensor) == 1 or not tensor.stride(0)))
            if (is_matrix and place > first) or _storage(tensor) in self._held:
                yield tensor

    @property
    def _rows(self) -> Rows:
        context = self._model.context
        return None if context is None else context.active

    def _enter(self, slot: int, member: int) -> None:
        if not self._frames or self._frames[-1].slot != slot:
            self._frames.append(_Frame(slot, member, is_blind=self._is_compiled and self._attends(slot)))
            self._turn()
        frame = self._frames[-1]
        frame.depth += 1
        if frame.is_blind:
            frame.uncounted.setdefault(self._rows, set()).add(FLEX)

    def _leave(self, slot: int, output: Any) -> None:
        frame = self._frames[-1] if self._frames else None
        if frame is None or frame.slot != slot:
            return
        frame.depth -= 1
        states = output[0] if isinstance(output, tuple) else output
        shape = tuple(states.shape) if isinstance(states, Tensor) else ()
        if shape:
            frame.shapes.setdefault(self._rows, []).append(shape)
        if frame.depth:
            return
        self._frames.pop()
        self._turn()
        given = prod(shape[:-1]) if shape and frame.member != OUTSIDE else 0
        for rows in dict.fromkeys((*frame.sums, *frame.uncounted)):
            self._emit(frame, rows, given)

    def _attends(self, slot: int) -> bool:
        """Whether attention may run in a part: it is one, or what surrounds it."""
        return slot < 0 or slot == self._foreign or (slot < self._head and slot % 2 == 0)

    def _turn(self) -> None:
        """Let operators pass through here while a part runs that is looked at, and at no other time."""
        wanted = bool(self._frames) and not self._frames[-1].is_blind
        if wanted != self._watches:
            self._watches = wanted
            if wanted:
                self.__enter__()  # type: ignore[no-untyped-call]
            else:
                self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _emit(self, frame: _Frame, rows: Rows, given: int) -> None:
        """Hand on what rows did in a part that ended."""
        shapes = () if frame.member == OUTSIDE else tuple(frame.shapes.get(rows, ()))
        uncounted, sums = tuple(sorted(frame.uncounted.get(rows, ()))), frame.sums.get(rows, {})
        layer = -1 - frame.slot
        if frame.slot < 0:
            if 2 * layer in sums and frame.slot in sums:  # products without weights are its attention's
                sums[2 * layer].products += sums[frame.slot].products
                sums[frame.slot].products = 0
            if uncounted:  # it may have done the work of branches that did not run
                sums.setdefault(2 * layer, _Sums())
                sums.setdefault(2 * layer + 1, _Sums())
        elif uncounted:
            sums.setdefault(frame.slot, _Sums())
        for slot, total in sums.items():
            most = max(total.tokens.values(), default=0)
            tokens = min(most, given) if most and given else most or given
            work = Counted(frame.member, tokens, total.linear, total.products, total.read, shapes, uncounted)
            if slot >= 0:
                self._count(slot, rows, work._replace(tokens=given) if uncounted and given else work)
            elif total.linear or total.products:
                self._count(self._foreign, rows, work._replace(uncounted=()))

    def _pause(self, *_: Any) -> None:
        if self._frames:
            self._frames[-1].paused += 1

    def _resume(self, *_: Any) -> None:
        if self._frames and self._frames[-1].paused:
            self._frames[-1].paused -= 1


def _storage(tensor: Tensor) -> int | None:
    """What identifies the memory of a tensor; None of one that has none of the usual kind."""
    try:
        storage: int = tensor.untyped_storage()._cdata
        return storage
    except (NotImplementedError, RuntimeError):
        return None


def _storage_of(module: nn.Module) -> int | None:
    weight = getattr(module, "weight", None)
    return _storage(weight) if isinstance(weight, Tensor) else None
