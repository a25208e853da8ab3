"""Layer drop: take out the layers, attentions or MLPs that change the residual stream least."""

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.mixins import OnText
from harness.contract.parameters import Indices
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.study import Study


@dataclass(frozen=True, kw_only=True)
class LayerDrop(OnText):
    """Take out the units of a model that matter least, once and for all inputs, without training.

    How: a forward pass over calibration text scores each unit by how little it turns the residual stream,
    S = 1 - mean cos(x, y) over tokens, with x the stream before the unit and y the stream after it. The
    ``count`` units with the smallest S go, all at once. They are really removed: not computed, and a dropped
    attention keeps no keys and values.

    Paper: "What Matters in Transformers? Not All Attention is Needed", He et al., arXiv:2406.15786. With
    ``unit=block`` it is ShortGPT, Men et al., arXiv:2403.03853.

    Parameters:
        unit: what is dropped: "block" (whole layers), "attention", "mlp", or "joint" (attentions and MLPs
            ranked together).
        count: how many units go; 0 leaves the model dense. At most one fewer than the model has.
        layers: drop in exactly these layers (``layers=3/4/7``, counted from 0) instead of choosing by score.

    Limits: at least one attention of each kind (full, sliding window) must stay. Multiple-choice scores hide
    damage that generation shows; report both.

    Deviations: the papers calibrate on 256 windows of 2048 tokens of C4 (LLM-Drop) or on PG-19 (ShortGPT);
    here the text is the run's calibration text, 8 windows of 512 tokens of it by default, so that a CPU takes seconds:
    on SmolLM2-135M (arc_easy), the ten lowest of 30 blocks are those by 32 windows, in the same order.

    Reference: tested on small random models of every supported layout: scores equal the formula computed by hand
    in double precision, a model without units equals, to rounding, the dense one whose hooks undo these units, and
    afterwards the dense model is back bit for bit. The papers' tables, of models from 7B, have not been reproduced.
    """

    name = "layer-drop"
    family = Family.PRUNING
    spans_devices = True
    paper = "arXiv:2406.15786"
    examples = tuple({"count": count, "samples": 4, "length": 64} for count in (1, 2, 3))
    neutral = {"count": 0, "samples": 4, "length": 64}

    unit: Literal["block", "attention", "mlp", "joint"] = "block"
    count: Annotated[int, Ge(0)] = 4
    layers: Indices = ()
    samples: Annotated[int, Ge(1)] = 8

    def check(self) -> None:
        """Make ``layers`` and ``count`` agree, so that one way of dropping has one fingerprint."""
        if not self.layers:
            return
        if self.unit == "joint":
            raise MethodError("layer-drop: unit=joint ranks attentions and MLPs together; it takes count, not layers")
        if len(set(self.layers)) < len(self.layers):
            raise MethodError(f"layer-drop: layers={self.layers} names a layer twice")
        if self.count not in (len(self.layers), type(self).count):
            raise MethodError(f"layer-drop: count={self.count} contradicts layers={self.layers}; leave count out")
        object.__setattr__(self, "layers", tuple(sorted(self.layers)))
        object.__setattr__(self, "count", len(self.layers))

    @property
    def removes(self) -> frozenset[str]:
        """Whole layers, or branches of them."""
        parts = {"block": {"layers"}, "attention": {"attentions"}, "joint": {"attentions", "MLPs"}, "mlp": {"MLPs"}}
        return frozenset(parts[self.unit] if self.count else ())

    def check_below(self, below: tuple[Method, ...]) -> None:
        """Refuse to score units where some are gone, or are left out of what runs."""
        super().check_below(below)
        unscored = self.removes | {"layers", "MLPs"}  # what goes in is read off the MLP; attentions may be gone
        for method in below:
            routed = method.directs_layers and method.family == Family.ROUTING
            if not self.layers and (routed or method.removes & unscored):
                raise MethodError(
                    f"layer-drop scores all units of the model, and {method.label} below it leaves some out: "
                    "name the layers that go, as in layer-drop:layers=1"
                )

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse more units than the model has, and layers that it lacks or that are gone already."""
        super().check_model(model, below)
        available = (2 if self.unit == "joint" else 1) * len(model.anatomy.blocks)
        if self.count >= available:
            raise MethodError(
                f"layer-drop: count={self.count} with unit={self.unit} is out of range for this model; "
                f"from 0 to {available - 1} can be dropped"
            )
        with ExitStack() as dropped:
            for method in (*below, self):
                if isinstance(method, LayerDrop) and method.layers:
                    dropped.enter_context(method.attach(model, method._named))

    @property
    def _named(self) -> Prepared:
        """The state where ``layers`` chose."""
        return Prepared(facts={"dropped": [[self.unit, layer] for layer in self.layers]})

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Score the units on the calibration text and choose the lowest.

        Returns facts alone: ``dropped``, [unit, layer] pairs, the least important first; and, unless
        ``layers`` chose, ``scores`` by unit and layer and the number of ``tokens`` they are a mean over.

        Raises:
            MethodError: the model has too few units, or a score is not a number.
        """
        from harness.model.influence import Unit, influence

        self.check_model(model)
        if self.layers:
            return self._named
        units: tuple[Unit, ...] = ("attention", "mlp") if self.unit == "joint" else (self.unit,)
        measured = influence(model, self.windows(model, study))
        scores = {unit: list(measured.scores[unit]) for unit in units}
        ranked = sorted((score, unit, layer) for unit in units for layer, score in enumerate(scores[unit]))
        dropped = [[unit, layer] for _, unit, layer in ranked[: self.count]]
        return Prepared(facts={"dropped": dropped, "scores": scores, "tokens": measured.tokens})

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model without the chosen units."""
        from harness.model.surgery import without_blocks, without_branches

        chosen: dict[str, list[int]] = {"block": [], "attention": [], "mlp": []}
        for unit, layer in prepared.facts["dropped"]:
            chosen[unit].append(layer)
        if self.unit == "block":
            return without_blocks(model, chosen["block"])
        return without_branches(model, attention=chosen["attention"], mlp=chosen["mlp"])
