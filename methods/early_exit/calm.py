"""CALM: leave the model where a token is confident, with a threshold that calibration certifies."""

import logging
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Interval

from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.methods.early_exit.exiting import Exiting

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study
    from harness.methods.early_exit.certificate import Certificate
    from harness.model.tokens.confidence import Confidence

FITTED = 0.2
"""Share of the calibration windows on which classifiers and vocabularies are fitted; the others certify."""


@dataclass(frozen=True, kw_only=True)
class Calm(Exiting):
    """Let every token exit at the first checked layer where the model is confident of its prediction.

    How: after every ``every``-th layer a confidence c is measured from the token's state h. "softmax": the likeliest
    token's probability less the next one's, from the final norm and the head on h. "saturation": the cosine of the
    layer's output with its input. "classifier": a linear classifier of h, trained on calibration text to tell
    whether the head's prediction from h is the one that the whole model ends with. A token exits where c reaches
    lambda_t = clip(0.9 lambda + 0.1 exp(-decay t / horizon), 0, 1) at its t-th prediction, and carries h to the final
    norm and the head. The deeper layers still get its keys and values, each projected from h by the layer itself.

    Unless ``threshold`` gives lambda, Learn then Test finds it: from strict to loose, candidates are tested on
    calibration windows, and the loosest one before the first failure is taken. With a probability of at least
    1 - epsilon its risk on text like that is at most delta. Where none can be certified, nothing exits: the run is
    dense, and says so.

    Tokens that are written or scored may exit, and the prompt's last. The prompt before it is read in full.

    Paper: "Confident Adaptive Language Modeling", Schuster et al., arXiv:2207.07061.

    Parameters:
        confidence: "softmax", "saturation" or "classifier".
        threshold: lambda, 0 to 1, or "certified" to let calibration find it; 1 never exits and is dense.
        every: check after every so many layers.
        start: share of the layers that every token runs before the first check.
        vocabulary: with softmax, compare the so many tokens alone that the model predicts most often on the
            calibration text, at least 2, from a head of their rows; 0 takes the whole head.
        decay: how fast the threshold falls over the predictions, tau in the paper; 0 keeps it at lambda.
        horizon: the number of predictions over which it falls, N in the paper.
        consistency: what the risk is of: "textual", the share of predictions that differ from the whole model's; or
            "risk", the loss in the share of the text's own tokens that are predicted.
        delta: the risk that is tolerated.
        epsilon: the probability of a wrong certificate.
        samples: calibration windows; a fifth of them fit classifiers and vocabularies, the others certify.
        length: tokens of a window, at least 4, of which the first half is read as a prompt; longer than the model's
            positions is cut to them.

    Limits: saves at decode alone, most with one row a batch, where a layer that its token skips reads no weights but
    those of keys and values. In scored text the exits are masked, which shows their quality and saves nothing. A
    check by the whole head can cost more than the layers that it spares: it is counted wherever it runs. The weights
    were not trained for exits, so quality falls faster than in the paper. The certificate is for windows of the
    calibration text, as independent as they are.

    Deviations: the paper's T5 encodes its prompt apart, is trained with a loss at every layer, and is calibrated on
    generated answers; here the prompt is part of the same model, the weights are as they are, and calibration scores
    given text. The classifier is one for each checked layer.

    Reference: tested on small random models of every supported layout: decoding equals recomputation without a cache
    that masks the exited tokens, to 1e-5; on synthetic risks the certified threshold breaks its promise in at most
    epsilon of 1000 trials. The paper's tables have not been reproduced.
    """

    name = "calm"
    family = Family.EARLY_EXIT
    paper = "arXiv:2207.07061"
    input_dependent = True
    examples = tuple({"confidence": "saturation", "threshold": 0, "decay": 0, "every": every} for every in (3, 2, 1))
    neutral = {"threshold": 1, "every": 1}

    confidence: Literal["softmax", "saturation", "classifier"] = "softmax"
    threshold: Annotated[float, Interval(ge=0, le=1)] | Literal["certified"] = "certified"
    every: Annotated[int, Ge(1)] = 4
    start: Annotated[float, Interval(ge=0, le=1)] = 0.0
    vocabulary: Annotated[int, Ge(0)] = 0
    decay: Annotated[float, Ge(0)] = 4.0
    horizon: Annotated[int, Ge(1)] = 128
    consistency: Literal["textual", "risk"] = "textual"
    delta: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    epsilon: Annotated[float, Interval(gt=0, lt=1)] = 0.05
    samples: Annotated[int, Ge(1)] = 250
    length: Annotated[int, Ge(4)] = 64

    def check(self) -> None:
        """Refuse a vocabulary without a use or without a second token."""
        if self.vocabulary and self.confidence != "softmax":
            raise MethodError(f"calm: vocabulary={self.vocabulary} is for confidence=softmax, not {self.confidence}")
        if self.vocabulary == 1:
            raise MethodError("calm: vocabulary=1 has no second token to compare with; give at least 2, or 0 for all")

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse a vocabulary larger than the model's, and a model without a layer to check."""
        super().check_model(model, below)
        size = model.module.get_output_embeddings().weight.shape[0]
        if self.vocabulary > size:
            raise MethodError(f"calm: vocabulary={self.vocabulary} is more than the model's {size} tokens")
        self._layers(model)

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Fit what the confidence needs, and certify a threshold unless one is given.

        Returns facts: ``threshold``, 1 where nothing exits; ``layers``, after which it is checked; and of a
        certification ``tested``, the candidates in order with their risks and p-values, and how many ``windows`` these
        are of. Tensors: ``vocabulary`` [tokens], or ``weights`` [layers, width] and ``biases`` [layers].

        Raises:
            MethodError: no layer to check, a vocabulary larger than the model's, or too little calibration text.
            UnsupportedModelError: a model whose layers a token cannot skip.
        """
        self.check_model(model)
        layers = self._layers(model)
        facts: dict[str, Any] = {"threshold": self.threshold, "layers": layers}
        certifies = self.threshold == "certified"
        if self.threshold == 1 or not (certifies or self._fits):
            return Prepared(facts=facts)
        windows = self._whole_windows(model, study)
        if not certifies:
            return Prepared(self._fitted(model, windows, layers), facts)
        count = math.ceil(FITTED * len(windows)) if self._fits else 0
        fitted = Prepared(self._fitted(model, windows[:count], layers), facts)
        exits = partial(self._exits, model, fitted)
        return Prepared(fitted.tensors, facts | self._certificate.test(model, windows[count:], exits))

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Let tokens exit where the threshold is reached."""
        facts = prepared.facts
        if facts["threshold"] == 1 and "tested" in facts:
            first = facts["tested"][0]
            logging.getLogger("harness").warning(
                f"calm: no threshold is certified to keep the risk below delta={self.delta:g} (the strictest, "
                f"{first['threshold']}, has a risk of {first['risk']:.3g} on {facts['windows']} windows), so nothing "
                "exits and the model runs dense"
            )
        return self._exits(model, prepared, facts["threshold"])

    @property
    def _fits(self) -> bool:
        """Whether the confidence is fitted to text."""
        return self.confidence == "classifier" or self.vocabulary > 0

    def _layers(self, model: "Decoder") -> list[int]:
        """The layers after which a check is made; after the last there is nothing to leave."""
        count = len(model.anatomy.blocks)
        first = max(math.ceil(self.start * count), 1)
        live = [block.index for block in model.live][:-1]
        layers = [layer for layer in live if layer + 1 >= first and (layer + 1) % self.every == 0]
        if not layers:
            raise MethodError(
                f"calm: every={self.every} and start={self.start:g} leave no layer to check in a model of {count}"
            )
        return layers

    @property
    def _certificate(self) -> "Certificate":
        from harness.methods.early_exit.certificate import Certificate

        return Certificate(self.delta, self.epsilon, with_text=self.consistency == "risk")

    def _whole_windows(self, model: "Decoder", study: "Study") -> "list[Tensor]":
        """Enough calibration windows of full length, each [1, length]."""
        length = self.window_length(model)
        windows = [window for window in self.windows(model, study) if window.shape[1] == length]
        what, needed, hint = "fitting its confidence", 1, ""
        if self.threshold == "certified":
            what, hint = f"certifying delta={self.delta:g} at epsilon={self.epsilon:g}", ", or tolerate more"
            needed = math.ceil(self._certificate.windows_needed / (1 - FITTED * self._fits))
        if len(windows) < needed:
            raise MethodError(
                f"calm: {what} takes at least {needed} windows of {length} tokens, and samples={self.samples} of "
                f"{study.source} gives {len(windows)}: give more text or samples{hint}"
            )
        return windows

    def _fitted(self, model: "Decoder", windows: "list[Tensor]", layers: list[int]) -> "dict[str, Tensor]":
        """The vocabulary or the classifiers, where the confidence has any."""
        import torch

        from harness.methods.early_exit.agreement import frequent, observed, train_classifiers

        if self.confidence == "classifier":
            weights, biases = zip(*train_classifiers(model, observed(model, windows), layers), strict=True)
            return {"weights": torch.stack(weights), "biases": torch.stack(biases)}
        if self.vocabulary:
            return {"vocabulary": frequent(model, observed(model, windows), self.vocabulary)}
        return {}

    def _exits(self, model: "Decoder", prepared: Prepared, threshold: float) -> AbstractContextManager[None]:
        """The exit rule with a threshold, attached."""
        from harness.model.tokens.exits import EarlyExit
        from harness.model.tokens.token_depth import token_depth

        layers = [] if threshold == 1 else prepared.facts["layers"]
        confidence = self._measure(model, prepared)
        return token_depth(model, EarlyExit(model, confidence, lambda _, steps: self._at(threshold, steps), layers))

    def _measure(self, model: "Decoder", prepared: Prepared) -> "Confidence":
        from harness.model.tokens.confidence import Classifier, Saturation, SoftmaxResponse

        if self.confidence == "saturation":
            return Saturation(model.config.hidden_size)
        if self.confidence == "softmax":
            return SoftmaxResponse(model, prepared.tensors.get("vocabulary"))
        tensors = [prepared.tensors.get(name, ()) for name in ("weights", "biases")]
        pairs = zip(*(list(tensor) for tensor in tensors), strict=True)
        pairs_by_layer = dict(zip(prepared.facts["layers"], pairs, strict=False))  # no pairs where nothing exits
        return Classifier(pairs_by_layer, model.device)

    def _at(self, threshold: float, steps: "Tensor") -> "Tensor | float":
        """lambda_t at each step t; the steps are of shape [rows, tokens]."""
        if not self.decay:
            return threshold
        return (0.9 * threshold + 0.1 * (-self.decay * steps / self.horizon).exp()).clamp(0, 1)
