"""Assistant: another checkpoint drafts, a smaller one that reads text the same way."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.methods.lossless.drafting import Drafting

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class Assistant(Drafting):
    """Let another checkpoint guess the next tokens, and verify all of them in one forward.

    How: the assistant writes ``draft`` tokens greedily, with a cache of its own. One forward of the whole model over
    the last token and the draft tells what the model itself would have written after each; what agrees is kept, with
    the model's next token after it, and the rest leaves both caches. The assistant's weights count among the model's,
    and what it reads and multiplies is charged to the text that it guesses.

    Paper: "Fast Inference from Transformers via Speculative Decoding", Leviathan et al., arXiv:2211.17192.

    Parameters:
        model: a folder with a ``config.json``, weights in safetensors and the tokenizer of the model; it is loaded in
            the model's number format.
        draft: guesses for each verification, at most; 0 guesses nothing and is dense.

    Limits: greedy generations of one row. An assistant with another tokenizer is refused, and one with experts, or with
    latent or differential attention, whose work is not counted here. It reads every prompt, which is charged to the
    first token that it guesses, and keeps a cache of its own, which is not among the bytes of the model's. It stays in
    memory from one method to the next, so peaks of memory beside it count it too. Idealized time prices its work as
    that of a decision, by multiplications.

    Deviations: transformers' assisted generation ends a draft where the assistant is unsure, and adapts its length;
    here a draft has one length.

    Reference: the text is dense's; with the model as its own assistant every guess is right, and PyTorch's count of
    multiplications is the one that is charged.
    """

    name = "assistant"
    paper = "arXiv:2211.17192"
    examples = ({"model": "model"},)

    model: Path
    draft: Annotated[int, Ge(0)] = 4

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse what is no folder with a model."""
        from harness.model.speculation.assistant import require_assistant

        super().check_model(model, below)
        require_assistant(self.model.expanduser())

    @contextmanager
    def attach(self, model: "Decoder", prepared: Prepared) -> Iterator[None]:
        """Verify what the assistant guesses."""
        from harness.model.speculation.assistant import assisted_by
        from harness.model.speculation.verification import speculated

        with assisted_by(model, self.model.expanduser()) as draft, speculated(model, draft, self.draft, self.name):
            yield
