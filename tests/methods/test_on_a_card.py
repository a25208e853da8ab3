"""What was prepared follows the model to its device: a state is read from a file, onto the CPU.

And what a method decides at each step of decoding: a card writes what the CPU writes.
"""

import pytest
import torch

from harness.contract import registry
from harness.contract.decoder import Row
from harness.model.weights.kernel_plan import first_kernels
from harness.testing.serve import TEXTS, generate
from harness.testing.subject import Subject, study_of
from tests.methods.cards import CARD, OnCard, a_card, move

LAYER_NORMS = {"rms-fold": "gpt2"}
"""Methods that a model with RMSNorms has no use for."""
ELSEWHERE = ("checkpoint", "kvpress", "assistant")
"""Another model, another's library, and a model that drafts, which need an argument."""
NAMES = [listing.name for listing in registry.listings() if listing.built_in and listing.name not in ELSEWHERE]
SETTINGS = (
    "calm:confidence=classifier,threshold=0.5,every=1,samples=6,length=24",
    "calm:vocabulary=64,threshold=0.5,every=1,samples=6,length=24",
)


def test_tensors_of_two_devices_refuse_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_card(monkeypatch):
        card = torch.ones(3, device=CARD)
        assert isinstance(card, OnCard)
        assert (card + card).tolist() == [2, 2, 2]
        assert (card.cpu() + torch.ones(3)).tolist() == [2, 2, 2]
        rows = torch.arange(6, device=CARD).view(3, 2)
        rows[[0, 2], 1:] = rows[[2, 0], :1]
        assert rows[[2, 0]].tolist() == [[4, 0], [0, 4]]
        with pytest.raises(RuntimeError, match="same device"):
            card + torch.ones(3)


@pytest.mark.parametrize("method", [*NAMES, *SETTINGS])
def test_a_method_whose_state_came_from_a_file_runs_on_a_card(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject.of(method, [LAYER_NORMS.get(method, "llama")])
    decoder = subject.decoder(subject.families[0])
    (part,) = subject.parts
    state = part.prepare(decoder, study_of(subject.parts, decoder))  # on the CPU, as a file's tensors are
    texts = TEXTS[: 1 if part.drafts else 2]  # drafts are of one row; others are padded
    with subject.stack.attached(decoder, lambda _: state):
        expected = generate(decoder, texts, steps=4)
    move(decoder.module)
    kernels = first_kernels(subject.stack.acting, decoder)
    text = TEXTS[0]
    with (
        a_card(monkeypatch),
        decoder.computed_by(kernels),
        subject.stack.attached(decoder, lambda _: state),
    ):
        for kind, tokens in (("score", text.tokens), ("generate", text.prompt)):
            ids = torch.tensor([list(tokens)], device=CARD)
            with decoder.serving([Row("text", 0, (0,), len(text.prompt), len(tokens))], kind):
                logits = decoder.module(ids).logits
            assert logits.device == CARD
            assert logits.isfinite().all()
        written = generate(decoder, texts, steps=4)
    assert written.tokens == expected.tokens
