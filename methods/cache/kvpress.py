"""The presses of kvpress, NVIDIA's library of methods that compress the cache, by their names."""

import inspect
from ast import literal_eval
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from annotated_types import Interval, MinLen

from harness.contract.decoder import Decoder
from harness.contract.facts import Phase
from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.parameters import Patterns, Texts
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError, UnknownNameError, UnsupportedModelError

if TYPE_CHECKING:
    from types import ModuleType

    from harness.model.cache.adopted import Hook
    from harness.model.cache.pressed import When

_NAMED = "it loads tables or weights by the model's name from the network"
_HIDES = "it hides entries head by head and holds them all, so nothing is saved"
_LATER = "it reads the text again when its own with block ends, before anything is written"
REFUSED: Final = {
    **dict.fromkeys(("ExpectedAttentionStats", "QFilter", "DuoAttention", "FastKVzip", "LUKV", "KVzap"), _NAMED),
    **dict.fromkeys(("AdaKV", "CriticalAdaKV", "DMS"), _HIDES),
    **dict.fromkeys(("KVzip", "KVgrad", "RestoreKV", "KVCompose"), _LATER),
    "Finch": "it needs a delimiter between context and question in the text",
    "PrefillDecoding": "it is two presses: run the press, or Decoding",
}
"""Presses of kvpress 0.5.5 that cannot be run here, with the reason."""

_INSTALL: Final = "pip install 'efficiency-harness[kvpress]' && pip install --no-deps kvpress"


@dataclass(frozen=True, kw_only=True)
class KvPress(Method):
    """Keep what a press of the library kvpress keeps of the cache.

    How: the library's own code is called after each attention, as its pipeline calls it; what it leaves in the cache is
    what later tokens read. `harness` counts what was held, so a press that only writes zeros saves nothing.

    Paper: the library is "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries
    Distribution", Devoto et al., arXiv:2510.00636; each press has its own.

    Parameters:
        press: the press, by its class's name without "Press": SnapKV, TOVA, KeyDiff, ChunkKV, ...
        keep: the share that stays; the library's ``compression_ratio`` is the share that goes.
        inner: the presses that the press works with, where it wraps others (ChunkKV, Block, Composed, ...).
        options: other arguments of the press, as name:value, joined by slashes: ``window_size:16/kernel_size:7``.

    Limits: needs kvpress, whose own requirements name older versions of transformers, so that it is installed without
    them: ``pip install 'efficiency-harness[kvpress]' && pip install --no-deps kvpress``. Llama, Mistral, Phi-3, Qwen 2
    and Qwen 3 without sliding windows, one row at a time. Presses that need tables for a model's name, that hide
    entries without letting them go, or that act where the library's own block ends are refused.

    Deviations: draws of random numbers are the same in every run. What tokens entries are of is not known, so tokens
    cannot be taken back.

    Reference: the library's own ``with press(model)``.
    """

    name = "kvpress"
    family = Family.CACHE
    paper = "arXiv:2510.00636"
    phases = frozenset({Phase.DECODE})
    batchable = False
    chooses_keys = True
    examples = tuple({"press": "Knorm", "keep": keep} for keep in (0.75, 0.5, 0.25))

    press: Annotated[str, MinLen(1)]
    keep: Annotated[float, Interval(gt=0, le=1)] = 0.5
    inner: Patterns = ("Knorm",)
    options: Texts = ()

    @property
    def takes_back(self) -> bool:
        """No: of which tokens entries are is not known."""
        return False

    def check(self) -> None:
        """Refuse a press that cannot be run here, and options that are none."""
        for name in (self.press, *self.inner):
            if reason := REFUSED.get(name.removesuffix("Press")):
                raise MethodError(f"{self.name}: {name} is not offered: {reason}")
        for option in self.options:
            if not all(option.partition(":")):
                raise MethodError(f"{self.name}: option {option!r} is not of the form name:value")

    def check_model(self, model: Decoder, below: tuple[Method, ...] = ()) -> None:
        """Refuse a model that the library does not know, and a press or an option that the library does not have."""
        from harness.model.attention import full_layers
        from harness.model.cache.engine import require_pressable

        super().check_model(model, below)
        require_pressable(model)
        library = self._library()
        if not isinstance(model.module, library.SUPPORTED_MODELS) or len(full_layers(model)) < len(model.live):
            known = ", ".join(kind.__name__ for kind in library.SUPPORTED_MODELS)
            raise UnsupportedModelError(
                f"{model.kind}: kvpress knows these models, and here without sliding windows: {known}"
            )
        self._made(library, len(model.live))

    @contextmanager
    def attach(self, model: Decoder, prepared: Prepared) -> Iterator[None]:
        """Run the model with a cache that the press changes."""
        from harness.model.cache.adopted import adopted

        press = self._made(self._library(), len(model.live))
        hook = _by_text(press, press.forward_hook)
        press.forward_hook = lambda *_: None  # the engine calls it, and the library does not
        when: frozenset[When] = frozenset({"decode" if hasattr(press, "target_size") else "prefill"})
        attentions = [block.attention.modules[0] for block in model.anatomy.blocks]
        before = [set(vars(attention)) for attention in attentions]
        try:
            with press(model.module):
                for attention in attentions:  # a reference, and no part: the attention is still the model's own
                    vars(attention)["rotary_emb"] = attention._modules.pop("rotary_emb")
                with adopted(model, hook, when, name=f"{self.name}:press={self.press}"):
                    yield
        finally:
            for attention, attributes in zip(attentions, before, strict=True):
                for name in set(vars(attention)) - attributes:
                    delattr(attention, name)

    def _library(self) -> "ModuleType":
        """The library, without the change that it makes to all attention functions of the process."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        own = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
        try:
            import kvpress
        except ImportError as error:
            raise MethodError(f"{self.name} needs the library kvpress ({error}): {_INSTALL}") from None
        finally:
            ALL_ATTENTION_FUNCTIONS._local_mapping.clear()
            ALL_ATTENTION_FUNCTIONS._local_mapping.update(own)
        library: ModuleType = kvpress
        return library

    def _made(self, library: "ModuleType", layers: int) -> Any:
        """The press with what it wraps."""
        inner = [self._one(library, name, self.keep ** (1 / len(self.inner)), layers) for name in self.inner]
        return self._one(library, self.press, self.keep, layers, inner, self.options)

    def _one(
        self,
        library: "ModuleType",
        name: str,
        keep: float,
        layers: int,
        inner: list[Any] | None = None,
        options: tuple[str, ...] = (),
    ) -> Any:
        kind = getattr(library, f"{name.removesuffix('Press')}Press", None)
        if kind is None or kind in (library.BasePress, library.ScorerPress):
            raise UnknownNameError("press of kvpress", name, presses(library))
        takes = inspect.signature(kind).parameters
        if inner and len(inner) > 1 and "presses" not in takes:
            raise MethodError(f"{self.name}: {name} does not work with several presses, as inner has them")
        given: dict[str, Any] = {"compression_ratio": 1 - keep, "target_compression_ratio": 1 - keep, "seed": 0}
        given |= {"key_channel_compression_ratio": 1 - keep, "compression_ratios": [1 - keep] * layers}
        if inner:
            given |= {"press": inner[0], "base_press": inner[0], "presses": inner}
            if "base_press" in takes:  # which is told a ratio at every turn
                inner[0].compression_ratio = 0.0
        chosen = {key: value for key, value in given.items() if key in takes}
        for option in options:
            key, _, value = option.partition(":")
            if key not in takes:
                raise UnknownNameError(f"option of {name}", key, list(takes))
            chosen[key] = value
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):  # a text, or nested too deeply
                chosen[key] = literal_eval(value)
        try:
            return kind(**chosen)
        except Exception as error:  # its own checks are assertions
            reason = " ".join(str(error).split()) or type(error).__name__
            raise MethodError(f"{self.name}: {name} cannot be made with these arguments: {reason}") from error


def _by_text(press: Any, hook: "Hook") -> "Hook":
    """The hook with what the press notes of each layer kept with the layer of the cache, and not from text to text."""

    def call(attention: Any, args: tuple[()], arguments: dict[str, Any], output: Any) -> Any:
        index = attention.layer_idx
        layer = arguments["past_key_values"].layers[index]
        notes = {name: noted for name, noted in vars(press).items() if isinstance(noted, dict)}  # by index of the layer
        for name, noted in notes.items():
            noted.pop(index, None)
            if name in getattr(layer, "notes", {}):
                noted[index] = copy(layer.notes[name])
        hook(attention, args, arguments, output)
        layer.notes = {name: copy(noted[index]) for name, noted in notes.items() if index in noted}

    return call


def presses(library: "ModuleType") -> list[str]:
    """The presses that an installed kvpress has, by the names by which the method takes them."""
    names = [name.removesuffix("Press") for name in dir(library) if name.endswith("Press")]
    return [name for name in names if name not in ("Base", "Scorer")]
