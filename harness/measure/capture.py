"""A step that is recorded once and played again, without the host launching what it consists of.

On CUDA a step is recorded as a graph (``torch.cuda.CUDAGraph``): everything that is launched while a stream is being
captured is kept with its arguments, and played by one launch. It must therefore do the same each time, on tensors that
stay where they are, and the host may not wait for the device meanwhile. Where it has to wait, torch.compile cuts the
step at these places and captures the parts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.core.errors import CaptureError
from harness.measure.batched import is_full
from harness.results.graph import CapturedBy

Run = Callable[[], None]

WARM_UPS: Final = 3
"""Runs before a step is recorded: kernels are loaded and chosen in the first ones, and workspaces made."""
_WAITS: Final = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim")
"""Operations whose result the host must know, so that it waits for the device."""


class ForbiddenError(CaptureError):
    """The host waits for the device in the middle of a step."""


class FullMemoryError(CaptureError):
    """Memory is full; what could not be measured may be another time."""


class Capture(ABC):
    """A way to record a step.

    Attributes:
        name: what records and tables call it.
        reads: whether it is for reading too, and not for writing a token alone.
    """

    name: ClassVar[CapturedBy]
    reads: ClassVar[bool] = True

    @abstractmethod
    def record(self, run: Run, before: Run) -> Run:
        """What plays the step again.

        Args:
            run: the step, on tensors that stay where they are; it is run several times.
            before: brings these to where they are when the step begins.

        Raises:
            ForbiddenError: the host waits for the device in the step.
            CaptureError: it cannot be recorded for another reason, in a sentence.
        """


class CudaGraphs(Capture):
    """CUDA graphs, whose intermediate tensors share their memory: one is played at a time, and none of them is kept.

    Raises:
        CaptureError: the model is not on a CUDA device.
    """

    name = "cuda graph"

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            without = "" if torch.version.cuda or torch.version.hip else ", and this torch is built without CUDA"
            raise CaptureError(f"graphs need CUDA; here the model is on {device.type}{without}")
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch's own annotations
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Run, before: Run) -> Run:
        """A graph of the step; see ``Capture``."""
        with torch.cuda.device(self._device), explained("captured"):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for number in range(WARM_UPS):
                    before()
                    with _refusing_waits(number == WARM_UPS - 1):  # what is loaded or kept once may be waited for
                        run()
                before()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    run()
            finally:
                torch.cuda.set_stream(current)  # a capture that ends in an error leaves its own
        return graph.replay


class Compiled(Capture):
    """torch.compile with ``mode="reduce-overhead"``: CUDA graphs of the parts between what it cannot compile."""

    name = "torch.compile"
    reads = False  # every length would be compiled anew

    def __init__(self) -> None:
        torch.compiler.reset()  # what was compiled with other methods attached counts against the limit of versions

    def record(self, run: Run, before: Run) -> Run:
        """The compiled step; see ``Capture``."""
        compiled = torch.compile(run, mode="reduce-overhead", dynamic=False)
        with explained("compiled"):
            for _ in range(WARM_UPS):
                before()
                compiled()
        return compiled


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """A sentence in place of what torch raises while a step is captured or compiled."""
    try:
        yield
    except CaptureError:
        raise
    except Exception as error:  # the compiler has errors of its own, of many classes
        if any(map(is_full, _with_causes(error))):  # which a capture that ends in it may hide behind its own
            remedy = "give fewer --cost_samples or --cost_tokens, or free memory"
            raise FullMemoryError(f"out of memory while its steps were {doing}: {remedy}") from error
        text = str(error)
        if doing == "captured" and any(sign in text.lower() for sign in ("synchronizing cuda operation", "captur")):
            raise ForbiddenError("the host waits for the device in the middle of a step") from error
        first = next(iter(text.strip().splitlines()), type(error).__name__)
        raise CaptureError(f"its steps could not be {doing}: {first.rstrip('.')}") from error


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those that it was raised after."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


@contextmanager
def _refusing_waits(refused: bool) -> Iterator[None]:
    """Let torch raise where the host waits for the device, before a capture is spoilt by it."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error" if refused else before)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def as_captured() -> Iterator[None]:
    """Let transformers take the way that it takes while a stream is captured: without looks at what tensors hold."""
    with patch("transformers.utils.import_utils.is_cuda_stream_capturing", lambda: True, create=True):
        yield


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own annotations
    """Notes what runs inside the ``with`` block.

    Attributes:
        done: every operation's name with the shapes of its tensors, in order.
        waits: names of those that the host waits for.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.done: list[tuple[str, tuple[tuple[int, ...], ...]]] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in args if isinstance(each, torch.Tensor)]
        name = getattr(func, "overloadpacket", func).__name__
        self.done.append((name, tuple(tuple(each.shape) for each in tensors)))
        if name in _WAITS or (name == "index" and _by_flags(args)) or _comes_home(tensors, result):
            self.waits.append(name)
        return result


def _by_flags(args: Any) -> bool:
    """Whether an index of bools decides how much is taken."""
    return any(isinstance(index, torch.Tensor) and index.dtype is torch.bool for index in args[1])


def _comes_home(tensors: list[torch.Tensor], result: Any) -> bool:
    """Whether a tensor on a device was copied to the host."""
    remote = any(each.device.type not in ("cpu", "meta") for each in tensors)
    return remote and isinstance(result, torch.Tensor) and result.device.type == "cpu"
