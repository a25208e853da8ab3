"""Repair: scale what is left of a pruned model so that it predicts what the dense model does."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.contract.study import Needs
from harness.core.errors import MethodError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study
    from harness.model.weights.scales import Branch


@dataclass(frozen=True, kw_only=True)
class Repair(Method):
    """Fit one scalar for each attention and MLP that is left, and merge it into the weights: no cost at run time.

    How: with h + a Attention(h) + m MLP(h) in every layer, the scalars a and m start at 1 and are trained while all
    weights stay frozen, so that what was taken out is made up for by what remains. They are then multiplied into the
    output projections and the MLPs' last linear layers, or into the norm that follows them. It is named after the
    method that it repairs: ``layer-drop:count=3+repair``.

    Paper: EnsembleScale of "Revisiting Vision Transformer from the View of Path Ensemble", Chang et al.,
    arXiv:2308.06548, after a removal instead of beside it.

    Control: ``layer-drop:count=3+repair:control=same-training`` trains the same scalars on the same text for as many
    steps, on the dense model: layer-drop chooses, and is off. What it gains on dense, the training gains without any
    repair. With ``target=dense`` there is nothing to learn for it, and it should stay at dense; with ``target=text`` it
    is what the repaired model is to be compared with.

    Parameters:
        target: what is trained for: "dense", the dense model's predictions (KL divergence); "text", the text's own
            next tokens.
        steps: steps of training; 0 leaves all scalars at 1.
        rows: windows of text in a step.
        length: tokens of a window, at least 2; longer than the model's positions is cut to them.
        rate: Adam's learning rate at the first step; it falls to zero along half a cosine.
        documents: training documents that the windows are cut from, at most.
        seed: of the order of the windows.
        control: "same-training" takes the methods below off again once the scalars to train are known.

    Limits: two scalars a layer make up for little; the more is gone, the less. It is trained on the task's training
    split, so with ``target=text`` it also learns the task, which the control shows.

    Deviations: the paper trains its scales together with an image model, one for each channel; here one for each
    branch is fitted alone, to a language model's own predictions.

    Reference: tested on small random models of every supported layout: merged scalars give what scaling the branches'
    outputs does, to rounding, at 1 the model bit for bit, and the divergence from dense on text that was not trained on
    falls. No published number has been reproduced.
    """

    name = "repair"
    family = Family.PRUNING
    paper = "arXiv:2308.06548"
    savings = Savings.NONE
    needs_training = True
    examples = ({"target": "text", "steps": 2, "rows": 2, "length": 32},)
    neutral = {"steps": 0}

    target: Literal["dense", "text"] = "dense"
    steps: Annotated[int, Ge(0)] = 50
    rows: Annotated[int, Ge(1)] = 8
    length: Annotated[int, Ge(2)] = 128
    rate: Annotated[float, Gt(0)] = 0.01
    documents: Annotated[int, Ge(1)] = 1024
    seed: Annotated[int, Ge(0)] = 0
    control: Literal["none", "same-training"] = "none"

    @property
    def needs(self) -> Needs:
        """More text than a calibration, and the dense model to learn from."""
        return Needs(documents=self.documents, teacher=True)

    @property
    def is_control(self) -> bool:
        """Whether what is below is off."""
        return self.control == "same-training"

    def check_below(self, below: tuple[Method, ...]) -> None:
        """Refuse methods that decide layers from a prompt: text without one is trained on."""
        super().check_below(below)
        for method in below:
            if method.directs_layers:
                raise MethodError(
                    f"repair is trained on running text, where {method.name} below it has no prompt to decide from: "
                    f"write repair+{method.name}"
                )

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse branches that cannot be scaled, or that end in a linear layer that a method below computes."""
        from harness.model.weights.computations import HasKernels
        from harness.model.weights.scales import branches, ending

        super().check_model(model, below)
        ends = {ending(model, model.anatomy.blocks[layer], kind) for kind, layer in branches(model)}
        for method in below:
            shared = isinstance(method, HasKernels) and [site for site in method.sites(model) if site.module in ends]
            if shared:
                raise MethodError(
                    f"repair changes the weight of {shared[0].name}, which {method.name} before it computes: "
                    f"write repair+{method.name}"
                )

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Train the scalars.

        Returns tensors: "attention" and "mlp", a scalar for each layer of the dense model, 1 where it has none; facts:
        how many ``scalars`` were trained, on how many ``tokens``, and the mean ``loss`` over the first and the last
        tenth of the steps.

        Raises:
            MethodError: too little text, or a loss that is not finite.
        """
        import torch

        from harness.model.training import dense_loss, text_loss, tune
        from harness.model.weights.scales import branches

        self.check_model(model)
        chosen = branches(model)
        trained = study.dense if self.is_control else model
        assert trained is not None
        # --8<-- [start:training]
        length = min(self.length, getattr(model.config, "max_position_embeddings", self.length))
        batches = study.batches(model, rows=self.rows, length=length, steps=self.steps, seed=self.seed)
        tuned = tune(
            trained,
            {kind: torch.ones(len(model.anatomy.blocks), device=model.device) for kind in ("attention", "mlp")},
            batches,
            dense_loss(study) if self.target == "dense" else text_loss,
            method=self,
            rate=self.rate,
            seed=self.seed,
            workbench=study.workbench,
            acting=lambda scales: self._weights(trained, scales, chosen),
        )
        # --8<-- [end:training]
        tenth = -(-self.steps // 10)
        ends = {"first": tuned.losses[:tenth], "last": tuned.losses[-tenth:]} if tenth else {}
        loss = {name: sum(losses) / tenth for name, losses in ends.items()}
        tokens = sum(batch.numel() for batch in batches)
        return Prepared(tuned.tensors, {"scalars": len(chosen), "tokens": tokens, "loss": loss})

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with the scalars in its weights."""
        from harness.model.weights.replaced import replaced
        from harness.model.weights.scales import branches

        scales = prepared.tensors
        chosen = [(kind, layer) for kind, layer in branches(model) if scales[kind][layer] != 1]
        return replaced(model, self._weights(model, scales, chosen))

    def _weights(
        self, model: "Decoder", scales: "Mapping[str, Tensor]", chosen: "Sequence[Branch]"
    ) -> "dict[str, Tensor]":
        from harness.model.weights.scales import scaled

        return scaled(model, {(kind, layer): scales[kind][layer] for kind, layer in chosen})
