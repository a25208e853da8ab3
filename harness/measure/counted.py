"""A branch that is not the dense model's any more, counted as it runs.

What a layer's attention or MLP costs follows from its linear layers as long as the module is the dense model's own, in
its place, and nothing but linear layers in it has been replaced. Any other branch is a *changed* one: while it runs,
the matrix products that Python asks torch for are counted by their shapes. A module that declares its work
(``macs_per_token``) is believed, and what it multiplies is not counted again.

What no call of torch shows, such as a product in a kernel of a method's own, is declared: by ``macs_per_token``, or by
``Decoder.charge``.
"""

from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode

from harness.measure.audit import count_flops
from harness.measure.shape import Linears

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder

Rows = tuple[int, ...] | None
"""Rows of the batch that ran; None: all of them."""

_PLACES: Final = {
    **dict.fromkeys(("linear", "matmul", "linalg_matmul", "mm", "bmm", "mv", "dot", "vdot", "_int_mm"), 0),
    **dict.fromkeys(("addmm", "addmm_", "addmv", "addmv_", "baddbmm", "baddbmm_"), 1),
}
"""Products of two tensors that sum over the last dimension of the first, and which argument the first one is."""
_DISPATCHED: Final = frozenset(
    (
        *("einsum", "tensordot", "inner", "chain_matmul", "linalg_multi_dot", "addbmm", "addbmm_", "bilinear"),
        *("conv1d", "conv2d", "conv3d", "multi_head_attention_forward"),
        *("_scaled_mm", "scaled_mm", "_grouped_mm", "grouped_mm"),
    )
)
"""Functions that PyTorch's own counter is asked about, because they are seldom used and hard to count."""


class Counted(NamedTuple):
    """Work of one call of a module of a changed branch, over all rows that ran.

    Attributes:
        member: which module of the branch.
        tokens: the most that one of its products with weights ran on.
        linear: multiply-accumulates of products with weights.
        products: those of the others, such as queries with keys.
        bytes: of the weights.
        shapes: of the outputs of the branch's modules.
    """

    member: int
    tokens: int
    linear: int
    products: int
    bytes: int
    shapes: tuple[tuple[int, ...], ...]


class _Frame:
    """A changed branch that is running."""

    def __init__(self, slot: int, member: int) -> None:
        self.slot, self.member = slot, member
        self.depth = 0  # calls that are open: a module in its place may call the dense model's
        self.paused = 0  # modules that count for themselves that are open
        self.sums: dict[Rows, list[int]] = {}  # [tokens, linear, products, bytes]
        self.shapes: dict[Rows, list[tuple[int, ...]]] = {}

    def add(self, rows: Rows, tokens: int, linear: int, products: int, read: int) -> None:
        total = self.sums.setdefault(rows, [0, 0, 0, 0])
        total[0] = max(total[0], tokens)
        total[1] += linear
        total[2] += products
        total[3] += read


class Counter(TorchFunctionMode):
    """Counts what changed branches multiply, while one runs.

    Args:
        model: whose rows are running.
        count: takes the work of a call: its slot, its rows, and what they did.
    """

    def __init__(self, model: "Decoder", count: Callable[[int, Rows, Counted], None]) -> None:
        super().__init__()
        self._model, self._count = model, count
        self._frames: list[_Frame] = []

    def watch(self, slot: int, member: int, module: nn.Module, counts: Callable[[], bool]) -> Iterator[Any]:
        """Hooks that count a module of a changed branch, while ``counts`` says that somebody listens."""

        def enter(*_: Any) -> None:
            if counts():
                self._enter(slot, member)

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            self._leave(slot, output)

        yield module.register_forward_pre_hook(enter)
        yield module.register_forward_hook(leave, always_call=True)

    def watch_declared(self, module: nn.Module) -> Iterator[Any]:
        """Hooks that count a linear layer that a method declares the work of."""

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            self._resume()
            frame = self._frames[-1] if self._frames else None
            if frame is not None and not frame.paused and isinstance(output, Tensor):
                tokens, linears = prod(output.shape[:-1]), Linears.of([module])
                frame.add(self._rows, tokens, tokens * linears.macs, 0, linears.bytes)

        yield module.register_forward_pre_hook(self._pause)
        # before the branch's own hook, where this module is the branch
        yield module.register_forward_hook(leave, always_call=True, prepend=True)

    def leave_out(self, module: nn.Module) -> Iterator[Any]:
        """Hooks on a module that is counted elsewhere."""
        yield module.register_forward_pre_hook(self._pause)
        yield module.register_forward_hook(self._resume, always_call=True)

    def reset(self) -> None:
        """Forget what an exception left open."""
        if self._frames:
            self._frames.clear()
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        frame = self._frames[-1] if self._frames else None
        if frame is None or frame.paused:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _DISPATCHED or isinstance(func, OpOverload | OpOverloadPacket):
            output, flops = count_flops(lambda: func(*args, **kwargs))
            macs = flops // 2
        else:
            output = func(*args, **kwargs)
            macs = _macs(name, args, kwargs, output)
        if macs:
            read = sum(tensor.nbytes for tensor in _weights(name, args, kwargs))
            tokens = prod(output.shape[:-1]) if read and isinstance(output, Tensor) else 0
            frame.add(self._rows, tokens, macs if read else 0, 0 if read else macs, read)
        return output

    @property
    def _rows(self) -> Rows:
        context = self._model.context
        return None if context is None else context.active

    def _enter(self, slot: int, member: int) -> None:
        if not self._frames:
            self.__enter__()  # type: ignore[no-untyped-call]
        if not self._frames or self._frames[-1].slot != slot:
            self._frames.append(_Frame(slot, member))
        self._frames[-1].depth += 1

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
        if not self._frames:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        given = prod(shape[:-1]) if shape else 0
        for rows, (tokens, linear, products, read) in frame.sums.items():
            ran = min(tokens, given) if tokens and given else tokens or given
            shapes = tuple(frame.shapes.get(rows, ()))
            self._count(slot, rows, Counted(frame.member, ran, linear, products, read, shapes))

    def _pause(self, *_: Any) -> None:
        if self._frames:
            self._frames[-1].paused += 1

    def _resume(self, *_: Any) -> None:
        if self._frames and self._frames[-1].paused:
            self._frames[-1].paused -= 1


def _macs(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """Multiply-accumulates of a function of torch by its arguments; 0 of those that multiply no matrices."""
    if name == "scaled_dot_product_attention":
        query, key, value = (*args, *kwargs.values())[:3]  # [..., tokens, width]
        return int(prod(query.shape[:-1]) * key.shape[-2] * (key.shape[-1] + value.shape[-1]))
    place = _PLACES.get(name)
    if place is None or not isinstance(output, Tensor):
        return 0
    first = args[place] if place < len(args) else kwargs["mat1" if place and "mat1" in kwargs else "input"]
    return int(output.numel() * first.shape[-1])


def _weights(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The factors of a product that are weights: parameters, and matrices that are not the first factor."""
    if name == "scaled_dot_product_attention":
        return
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    for place, tensor in enumerate(tensors):
        is_second = place > _PLACES.get(name, 0) and tensor.ndim == 2
        if is_second or (isinstance(tensor, nn.Parameter) and tensor.ndim > 1):
            yield tensor
