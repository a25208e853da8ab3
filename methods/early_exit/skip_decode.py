"""SkipDecode: the later a token comes, the fewer layers it runs, so that no layer is owed keys and values."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Interval

from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contract.decoder import Decoder
    from harness.model.tokens.token_depth import Tokens

Share = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class SkipDecode(Method):
    """Run fewer layers for later tokens, by a schedule that depends on the position alone.

    How: with a prompt that ends at position p and texts of ``length`` tokens, a token at position t runs
    n(t) = round(most - (most - least) (t - p) / (length - 1 - p)) layers: all of ``most`` at the prompt's last token,
    ``least`` from the last position on. They are the first ``warmup`` layers and the last n(t) - ``warmup``: what is
    skipped lies between. As n never rises, no later token runs a layer that an earlier one skipped, so a skipped layer
    keeps no keys and values; and a layer that no token runs is left out, at prefill too. The prompt runs ``most``.

    Paper: "SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient LLM Inference", Del Corro
    et al., arXiv:2307.02628.

    Parameters:
        most: share of the layers that prompts and first tokens run.
        least: share of the layers that tokens from ``length`` on run; 1 leaves the model dense.
        warmup: how many of the first layers every token runs.
        length: tokens of a text, prompt included, over which the share falls.

    Limits: the paper trains the model with the same schedule; without that, quality falls fast. Rows of a batch whose
    prompts differ in length are at different depths, so a layer is left out when the last of them has left it. Scored
    text is masked in the layers that some of its tokens run and some do not, which saves nothing there.

    Deviations: the paper aligns the rows of a batch and gives all of them one prompt length; here every row has its
    own, and its schedule is that of the row alone.

    Reference: tested on small random models of every supported layout: decoding equals recomputation without a cache
    that masks the skipped layers, to 1e-5. The paper's tables, of models trained for it, have not been reproduced.
    """

    name = "skip-decode"
    family = Family.EARLY_EXIT
    paper = "arXiv:2307.02628"
    directs_layers = True
    examples = tuple({"least": least, "length": 13} for least in (0.75, 0.5, 0.25))
    neutral = {"least": 1}

    most: Share = 1.0
    least: Share = 0.5
    warmup: Annotated[int, Ge(1)] = 1
    length: Annotated[int, Ge(1)] = 256

    def check(self) -> None:
        """Refuse a share that rises."""
        if self.least > self.most:
            raise MethodError(f"skip-decode: least={self.least} is more than most={self.most}; the depth never rises")

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Let each token run the layers of its position."""
        from harness.model.tokens.schedule import Schedule
        from harness.model.tokens.token_depth import token_depth

        if self.least == 1:
            return nullcontext()
        layers = [block.index for block in model.live]
        return token_depth(model, Schedule(layers[self.warmup :], partial(self._skipped, len(layers))))

    def _skipped(self, layers: int, tokens: "Tokens") -> "Tensor":
        """How many layers each token skips, [rows, tokens]."""
        prompt = tokens.positions - tokens.steps  # positions of the prompts' last tokens
        fallen = (tokens.steps / (self.length - 1 - prompt).clamp(min=1)).clamp(max=1)
        depth = self.most - (self.most - self.least) * fallen
        return layers - (layers * depth).round().long()
