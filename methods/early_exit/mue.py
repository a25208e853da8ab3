"""MuE: leave the model where adjacent layers stop turning a token's state."""

import math
from collections import defaultdict
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Interval

from harness.contract.families import Family
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.methods.early_exit.exiting import Exiting

if TYPE_CHECKING:
    import torch

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study

ABOVE = 10
"""Calibration tokens that must lie above a quantile for it to be taken as one."""


@dataclass(frozen=True, kw_only=True)
class MuE(Exiting):
    """Let every token exit at the first layer that leaves its state nearly as it was.

    How: after each layer l from ``start`` on, s_l = cos(h_l, h_(l-1)) between the layer's output and its input. A
    token whose s_l reaches theta_l, ``hits`` layers in a row, exits: it carries h_l to the final norm and the head.
    The deeper layers still get its keys and values, each projected from h_l by the layer itself. Adjacent states of
    a decoder are alike through the middle of the network for nearly every token, so one threshold for all layers
    exits almost nowhere or very early: theta_l is a quantile of s_l on calibration text, its own in every layer.

    Tokens that are written or scored may exit, and the prompt's last. The prompt before it is read in full.

    Paper: "You Need Multiple Exiting: Dynamic Early Exiting for Accelerating Unified Vision Language Model", Tang et
    al., arXiv:2211.11152.

    Parameters:
        quantile: theta_l is this quantile of s_l, so that a share of about 1 - quantile of the tokens reaches it in
            each layer; 1 never exits and is dense.
        threshold: one theta for all layers, -1 to 1, in place of the quantiles, as in the paper; 1 never exits.
        start: share of the layers that every token runs, at least one layer.
        hits: layers in a row that must reach their theta.

    Limits: saves at decode alone, most with one row a batch, where a layer that its token skips reads no weights but
    those of keys and values. In scored text the exits are masked, which shows their quality and saves nothing. The
    weights were not trained for exits, so quality falls faster than in the paper.

    Deviations: the paper exits whole batches of a vision-language encoder-decoder, trained with a loss at every
    layer, and its code copies the exit layer's keys and values to the deeper layers, which costs more quality than
    projecting them. Per-layer quantiles, ``start`` and ``hits`` are this port's.

    Reference: tested on small random models of every supported layout: decoding equals recomputation without a cache
    that masks the exited tokens, to 1e-5; thresholds equal quantiles computed apart. The paper's tables have not been
    reproduced.
    """

    name = "mue"
    family = Family.EARLY_EXIT
    paper = "arXiv:2211.11152"
    input_dependent = True
    examples = tuple({"threshold": -1, "start": start} for start in (0.75, 0.5, 0))
    neutral = {"quantile": 1}

    quantile: Annotated[float, Interval(ge=0, le=1)] = 0.9
    threshold: Annotated[float, Interval(ge=-1, le=1)] | None = None
    start: Annotated[float, Interval(ge=0, le=1)] = 0.25
    hits: Annotated[int, Ge(1)] = 1

    def check(self) -> None:
        """Take one rule for the thresholds."""
        if self.threshold is not None and self.quantile != type(self).quantile:
            raise MethodError(f"mue: quantile={self.quantile} contradicts threshold={self.threshold}; give one of them")

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Take each layer's threshold from its cosines on the calibration text.

        Returns facts alone: ``thresholds``, [layer, theta] pairs of the layers after which a token may exit, none
        where nothing exits; and, unless ``threshold`` chose, how many ``tokens`` the quantiles are of.

        Raises:
            MethodError: the text is too short for the quantile, or a cosine is not a number.
            UnsupportedModelError: a model whose layers a token cannot skip.
        """
        layers = range(max(math.ceil(self.start * len(model.anatomy.blocks)), 1) - 1, len(model.anatomy.blocks) - 1)
        if self.quantile == 1 or self.threshold == 1:
            return Prepared(facts={"thresholds": []})
        if self.threshold is not None:
            return Prepared(facts={"thresholds": [[layer, self.threshold] for layer in layers]})
        cosines = _cosines(model, list(self.windows(model, study)))
        length = self.window_length(model)
        tokens = min((len(values) for values in cosines.values()), default=0)
        needed = math.ceil(ABOVE / (1 - self.quantile) - 1e-9)
        if cosines and tokens < needed:
            raise MethodError(
                f"mue: quantile={self.quantile:g} takes {needed} tokens of calibration text, and {self.samples} "
                f"windows of {length} from {study.source} have {tokens}: give more text, samples or length"
            )
        chosen = [[layer, cosines[layer].quantile(self.quantile).item()] for layer in layers if layer in cosines]
        return Prepared(facts={"thresholds": chosen, "tokens": tokens})

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Let tokens exit where their layer's threshold is reached."""
        from harness.model.tokens.confidence import Saturation
        from harness.model.tokens.exits import EarlyExit
        from harness.model.tokens.token_depth import token_depth

        thresholds = dict(prepared.facts["thresholds"])
        measure = Saturation(model.config.hidden_size)
        exits = EarlyExit(model, measure, lambda layer, _: thresholds[layer], thresholds, self.hits)
        return token_depth(model, exits)


def _cosines(model: "Decoder", windows: "list[torch.Tensor]") -> "dict[int, torch.Tensor]":
    """The cosine of every layer's output with its input, for all tokens; the last layer's is not needed."""
    import torch

    from harness.model.tokens.confidence import Saturation
    from harness.model.tokens.exits import layer_inputs

    measure = Saturation(model.config.hidden_size)
    cosines: dict[int, list[torch.Tensor]] = defaultdict(list)
    for window in windows:
        for (layer, before), (_, after) in pairwise(layer_inputs(model, window).items()):
            cosines[layer].append(measure(layer, before, after)[0])  # [tokens] of the one window
    joined = {layer: torch.cat(values) for layer, values in cosines.items()}  # each [tokens]
    for layer, values in joined.items():
        if not values.isfinite().all():
            raise MethodError(f"mue: a cosine after layer {layer} is not a number: activations are not finite")
    return joined
