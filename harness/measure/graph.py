"""Serving without launch overhead: requests alone, with the steps of the attached model captured beforehand.

A token is then one launch, whatever the layers of a model: what is left is the device's own time. Reading is captured
by the number of tokens, writing one token by the path that the prompt took. A method whose decisions depend on the
input has its prompts read without a capture; where each token decides anew, nothing is captured.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch

from harness.contract.decoder import Decoder, ForwardContext
from harness.core.errors import CaptureError
from harness.measure.capture import Capture, ForbiddenError, Operations, Run, as_captured
from harness.measure.clock import synchronize
from harness.measure.serve import CostRequest, Served
from harness.model.paths.routed_cache import LayerPath
from harness.model.static import StaticRow

_SAMPLING: Final = {"do_sample": False, "num_beams": 1, "penalty_alpha": None, "repetition_penalty": 1.0}
"""Options of generation that captured steps know one value of: they write the likeliest token."""


@dataclass(frozen=True)
class Agreement:
    """Whether captured steps give what the model gives without them.

    Attributes:
        tokens: those compared: written after prompts, or the likeliest after every token of scored texts.
        differences: how many of them differ.
    """

    tokens: int
    differences: int

    def __add__(self, more: "Agreement") -> "Agreement":
        return Agreement(self.tokens + more.tokens, self.differences + more.differences)


@dataclass
class _Reading:
    """Reading so many tokens, captured or not.

    Attributes:
        ids: the tokens, [1, tokens]; what is played reads them here.
        logits: of the last reading, [1, kept, vocabulary].
        path: the path that was taken while it was captured.
    """

    ids: torch.Tensor
    play: Run
    logits: torch.Tensor | None = None
    path: LayerPath | None = None


@dataclass
class Captured:
    """The captured steps of a model with its methods attached, which stay attached while it is used.

    Attributes:
        length: tokens of the longest text, by which all caches are sized.
        input_dependent: whether the methods decide by the input, so that only what follows a prompt is captured.

    Raises:
        CaptureError: the methods are of a kind whose steps cannot be captured.
    """

    model: Decoder
    capture: Capture
    length: int
    input_dependent: bool
    _readings: dict[tuple[int, int | None], _Reading] = field(default_factory=dict)
    _writing: dict[LayerPath | None, Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set((getattr(self.model.module, "hf_device_map", None) or {}).values())) > 1:
            raise CaptureError("its layers are on several devices, and a graph is of one")
        with as_captured():
            self._row = StaticRow(self.model, self.length, _ends(self.model))
        if self.input_dependent and not self._row.routed:
            raise CaptureError("what runs is decided anew for every token")

    def serve(self, request: CostRequest) -> Served:
        """Serve a request as ``harness.measure.serve.serve`` does, by captured steps.

        Raises:
            ForbiddenError: the host waits for the device in a step.
            CaptureError: the steps cannot be captured for another reason.
        """
        request = request.suited(self.model.manner)
        with as_captured():
            self._read(request)  # not measured: what is captured for its path, and what memory it needs, is there
            steps = [self._step()] * (request.new_tokens - 1) if request.new_tokens else []
            readings = self._begin(request)
        with self._context(request), as_captured():
            synchronize(self.model.device)
            began = time.perf_counter()
            for reading in readings:
                reading.play()
            synchronize(self.model.device)
            times = [time.perf_counter() - began]
            for step in steps:
                step()
                synchronize(self.model.device)
                times.append(time.perf_counter() - began)
        return Served(tuple(times), tuple(range(1, request.new_tokens + 1)) if request.new_tokens else (0,))

    def agreement(self, request: CostRequest) -> Agreement:
        """Compare what captured steps give with what the model gives as the evaluation runs it.

        Raises:
            ForbiddenError: the host waits for the device in a step.
            CaptureError: the steps are not alike, or cannot be captured for another reason.
        """
        request = request.suited(self.model.manner)
        self._require_possible(request)
        with as_captured():
            captured = self._read(request)
            if not request.new_tokens:
                expected = self._scored(request)
                return Agreement(captured.numel(), int((captured != expected).sum()))
            self._require_alike(request)
            step, written = self._step(), [int(self._row.token)]
            for _ in range(1, request.new_tokens):
                step()
                written.append(int(self._row.token))
        pairs = zip(written, self._generated(request), strict=True)
        return Agreement(len(written), sum(got != want for got, want in pairs))

    # ---- what is captured -----------------------------------------------------------------------------------

    def _read(self, request: CostRequest) -> torch.Tensor:
        """Read a request's tokens; the row is behind them afterwards.

        Returns:
            the likeliest token after each that has logits, [1, kept].
        """
        readings, likeliest = self._begin(request), []
        with self._context(request):
            for reading in readings:
                reading.play()
                assert reading.logits is not None
                likeliest.append(reading.logits.argmax(-1))  # what is played next may use the memory of these logits
        return torch.cat(likeliest, 1)

    def _begin(self, request: CostRequest) -> list[_Reading]:
        """What reads a request's tokens, which are where they are read; the row is at the beginning of its text."""
        self._row.reset()
        readings = []
        for tokens, keep in _parts(request):
            key = (len(tokens), keep)
            if key not in self._readings:
                self._readings[key] = self._reading(request, *key)
            self._readings[key].ids.copy_(torch.tensor([tokens]))
            readings.append(self._readings[key])
        self._row.reset()
        return readings

    def _reading(self, request: CostRequest, tokens: int, keep: int | None) -> _Reading:
        """Reading so many tokens, captured unless what is read decides what runs."""
        ids = torch.zeros(1, tokens, dtype=torch.long, device=self.model.device)
        reading = _Reading(ids, lambda: None)

        @torch.no_grad()
        def run() -> None:
            reading.logits = self.model.module(ids).logits if keep is None else self._row.read(ids, keep)

        if not self.reads:
            reading.play = run
            return reading

        def captured() -> None:
            with self._context(request):
                run()

        played = self.capture.record(captured, self._row.way_back())
        reading.path = self._row.path

        def play() -> None:
            played()
            self._row.take(reading.path)

        reading.play = play
        return reading

    @property
    def reads(self) -> bool:
        """Whether reading is captured too."""
        return self.capture.reads and not self.input_dependent

    def _step(self) -> Run:
        """Writing a token on the row's path; the row stays where it is."""
        path = self._row.path
        if path not in self._writing:
            back = self._row.way_back()
            self._writing[path] = self.capture.record(self._row.step, back)
            back()
        return self._writing[path]

    def _require_alike(self, request: CostRequest) -> None:
        """Refuse steps that do other things at the end of a text than at its beginning; the row stays where it is.

        Raises:
            ForbiddenError: the host waits for the device in a step.
            CaptureError: the steps differ.
        """
        back = self._row.way_back()
        self._row.step()  # what is kept from one step to the next is there
        seen = []
        for place in (len(request.tokens), len(request.tokens) + request.new_tokens - 2):
            back()
            self._row.move(place)
            with Operations() as operations:
                self._row.step()
            seen.append(operations)
        back()
        if seen[0].done != seen[1].done:
            raise CaptureError("its steps differ: what runs depends on how far a text is written")
        if waits := seen[0].waits + seen[1].waits:
            raise ForbiddenError(f"the host waits for the device in every step ({waits[0]})")

    # ---- the same without a capture -------------------------------------------------------------------------

    def _generated(self, request: CostRequest) -> list[int]:
        """The tokens that ``generate`` writes."""
        ids = torch.tensor([request.tokens], device=self.model.device)  # [1, tokens]
        options: dict[str, Any] = {
            "do_sample": False,
            **request.options,
            "attention_mask": torch.ones_like(ids),
            "min_new_tokens": request.new_tokens,
            "max_length": len(request.tokens) + request.new_tokens,
            "use_cache": True,
            "pad_token_id": self.model.tokenizer.pad_token_id,
        }
        with self._context(request):
            written: list[int] = self.model.module.generate(ids, **options)[0, ids.shape[1] :].tolist()
        return written

    def _scored(self, request: CostRequest) -> torch.Tensor:
        """The likeliest tokens after a text's own, as far as captured reading gives them, [1, tokens]."""
        ids = torch.tensor([request.tokens], device=self.model.device)  # [1, tokens]
        with self._context(replace(request, read=None)), torch.no_grad():
            predicted: torch.Tensor = self.model.module(ids).logits.argmax(-1)
        ends, kept = 0, []
        for tokens, keep in _parts(request):
            ends += len(tokens)
            kept.append(predicted[:, ends - (keep or len(tokens)) : ends])
        return torch.cat(kept, 1)

    def _require_possible(self, request: CostRequest) -> None:
        if not request.new_tokens and not self.reads:
            why = "what runs is decided" if self.input_dependent else "the host waits for the device"
            raise CaptureError(f"a scored text is only read, and {why} while it is read")
        for name, greedy in _SAMPLING.items():
            value = request.options.get(name, greedy)
            if value != greedy and value is not None:
                raise CaptureError(f"the task asks for {name}={value}, and captured steps write the likeliest token")

    def _context(self, request: CostRequest) -> AbstractContextManager[ForwardContext]:
        return self.model.serving([request.row], "generate" if request.new_tokens else "score", read=request.read)


def captured_with(
    captures: Sequence[Callable[[], Capture]], make: Callable[[Capture], Captured], requests: Sequence[CostRequest]
) -> tuple[Callable[[], Capture], Captured, Agreement]:
    """The first way of capturing that all requests can be served by, and whether it gives the same tokens.

    Args:
        captures: ways, the best first; one that waits rule out gives way to the next.

    Raises:
        CaptureError: with the reason of the last one.
    """
    reason = CaptureError("there is no way to capture a step here")
    for way in captures:
        try:
            captured = make(way())
            return way, captured, sum((captured.agreement(request) for request in requests), Agreement(0, 0))
        except ForbiddenError as error:
            reason = error
    raise reason


def _parts(request: CostRequest) -> list[tuple[tuple[int, ...], int | None]]:
    """What is read at once, and how many of its last logits are asked for; None: all, and no cache is kept."""
    tokens = request.tokens
    if request.new_tokens:
        return [(tokens, 1)]
    if request.read is None:
        return [(tokens, None)]
    context, rest = tokens[: request.read], tokens[request.read :]
    keep = min(len(tokens) + 1 - request.prompt_length, len(rest))
    return [part for part in ((context, 1), (rest, keep)) if part[0]]


def _ends(model: Decoder) -> list[int]:
    """Tokens that ``generate`` ends a text with, which are not written before as many as are asked for."""
    ends = model.module.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
