"""What a method does to weights: it changes those that it means to, and not what happens to share them."""

from torch import nn

from harness.testing.outcome import Skipped
from harness.testing.serve import TEXTS, require_same_scores, score
from harness.testing.subject import Subject, on


def tied_weights_change_nothing(subject: Subject) -> None:
    """It answers the same whether embedding and head share one weight or hold the same values apart."""
    if subject.stack.is_dense:
        raise Skipped("the baseline changes nothing")
    family = subject.working[0]
    tied, apart = (subject.decoder(family, tie_word_embeddings=True) for _ in range(2))
    head = apart.anatomy.head
    head.weight = nn.Parameter(apart.anatomy.embedding.get_parameter("weight").detach().clone())
    answers = []
    for decoder in (tied, apart):
        with subject.attached(decoder):
            answers.append(score(decoder, TEXTS[:1]).row(0))
    what = (
        "it answers otherwise where embedding and head share one weight than where they hold the same values apart; "
        "harness.model.weights.replaced gives a parameter other values and leaves what shares it as it is"
    )
    with on(family):
        require_same_scores(answers[0], answers[1], what)
