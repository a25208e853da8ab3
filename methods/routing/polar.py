"""PoLar: the whole path is predicted from the prompt before the model runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, MultipleOf

from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.methods.routing.searched import Searched

if TYPE_CHECKING:
    import torch

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study
    from harness.methods.routing.programs import Predictor

_TINY = {"questions": 4, "simulations": 6, "epochs": 2, "width": 8}


@dataclass(frozen=True, kw_only=True)
class Polar(Searched):
    """Let a small predictor decide, from the prompt's embeddings, which layers are skipped, run or repeated.

    How: the same search as dr-llm finds for training questions the shortest path that gives the right answer. A
    predictor, in which a query of each layer attends to the prompt's embeddings and the queries then see one another,
    learns where the path's segments begin and what is done with each. The likeliest path is taken, before any layer
    runs, for all answers to a document and every generated token. The predictor's own cost is counted.

    Paper: "PoLar", arXiv:2606.06574.

    Parameters:
        skip_bias: added to the logit of skipping; the larger, the more layers are skipped.
        width: channels of the predictor, a multiple of 4.
        epochs: passes over the questions that have a right path.
        rate: learning rate of AdamW.

    Limits: a text without a prompt (rolling perplexity) has no path and is refused. A written answer counts as right
    when it is the task's target word for word.

    Deviations: the predictor reads the model's own embeddings, where the paper's reads a 0.6B embedding model; it is
    narrower by default (64 channels, not 256); each question teaches its one shortest path, not up to 50; repeated
    layers repeat alone (f(f(h)), then g(g(h))), not as a block; the likeliest path is found exactly instead of by a
    beam.

    Reference: the likeliest path is tested against all segmentations; cached decoding equals recomputation without a
    cache. The paper's tables have not been reproduced.
    """

    name = "polar"
    paper = "arXiv:2606.06574"
    examples = tuple({"skip_bias": bias, **_TINY} for bias in (1.0, 3.0, 20.0))

    skip_bias: float = 0.0
    width: Annotated[int, Ge(4), MultipleOf(4)] = 64
    epochs: Annotated[int, Ge(1)] = 40
    rate: Annotated[float, Gt(0)] = 1e-3

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Search paths, then train the predictor on the questions' embeddings.

        Raises:
            MethodError: too few questions have a right path to learn from.
            UnsupportedModelError: the layer-path engine does not know the model.
        """
        import torch

        from harness.methods.routing.features import first_states
        from harness.methods.routing.program_training import train
        from harness.methods.routing.training import quality

        labels = self.labels(model, study)
        paths = [label.path for label in labels.kept]
        states = first_states(model, labels.kept)
        training, judged = (indices.tolist() for indices in self.held_out(len(paths)))
        chosen = [states[i] for i in training], [paths[i] for i in training]
        predictor = train(*chosen, self.width, self.epochs, self.rate, self.seed, study.workbench)
        facts = labels.facts(len(model.anatomy.blocks))
        if judged:
            predicted = self._paths(predictor, [states[i] for i in judged])
            wanted = torch.tensor([paths[i] for i in judged])
            facts["predictor on held-out questions"] = quality(predicted.flatten(), wanted.flatten())
        return Prepared(dict(predictor.state_dict()), facts)

    def _paths(self, predictor: "Predictor", states: "Sequence[torch.Tensor]") -> "torch.Tensor":
        """The predicted paths, [prompts, layers]."""
        import torch

        from harness.methods.routing.programs import best_path

        predicted = [predictor(prompt[None]) for prompt in states]
        return torch.tensor([best_path(begins[0], does[0]) for begins, does in predicted])

    @contextmanager
    def attach(self, model: "Decoder", prepared: Prepared) -> Iterator[None]:
        """Predict a path for every prompt.

        Raises:
            MethodError: the state is not of a predictor for this model.
        """
        from harness.methods.routing.programs import Predictor, ProgramController
        from harness.model.paths.layer_path import routed

        predictor = _load(Predictor, model, prepared.tensors)
        controller = ProgramController(model, predictor, self.skip_bias)
        with routed(model, controller), model.assisted(controller.auxiliaries):
            yield


def _load(kind: "type[Predictor]", model: "Decoder", tensors: "dict[str, torch.Tensor]") -> Any:
    """The predictor of a prepared state; building one draws random weights, so the random state is restored."""
    import torch

    try:
        with torch.random.fork_rng(devices=[]):
            width = tensors["project.weight"].shape[0]
            predictor = kind(model.config.hidden_size, width, len(model.anatomy.blocks)).requires_grad_(False)
        predictor.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        raise MethodError(f"the prepared state is not of a predictor for this model: {error}") from error
    return predictor
