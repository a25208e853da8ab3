"""Dr.LLM: routers in the layers that skip, run or repeat each, taught by searched paths."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le, Lt

from harness.contract.prepared import Prepared
from harness.methods.routing.searched import Searched

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.study import Study

_TINY = {"questions": 4, "simulations": 6, "epochs": 2, "hidden": 8}


@dataclass(frozen=True, kw_only=True)
class DrLLM(Searched):
    """Let a small router before each layer decide, from the prompt, whether the layer is skipped, run or repeated.

    How: on training questions of the task, a tree search looks for the shortest path through the layers that still
    gives the right answer, or that corrects a wrong one. Each layer's router, an MLP over the layer's input pooled
    into 8 windows of the prompt, learns the path's choice. The model itself is not changed. Afterwards every document
    takes the path that the routers choose while its prompt is read; all its answers, and every generated token, keep
    that path, with exact keys and values. A skipped layer is not computed. The routers' own cost is counted.

    Paper: "Dr.LLM: Dynamic Layer Routing in LLMs", arXiv:2510.12773.

    Parameters:
        control: the paper's knob (appendix C): -0.5 leaves the choice to the routers, towards -1 more layers are
            skipped until all are, towards 0.5 more are run once until all are, towards 1 more are repeated.
        windows: windows that the prompt is pooled into.
        hidden: width of the routers.
        epochs: passes over the questions that have a right path.
        rate: learning rate of AdamW.
        beta: balance of the classes; 0 weighs them alike, towards 1 by the inverse of their frequency.
        gamma: focus of the loss on what is still wrong.

    Limits: a text without a prompt (rolling perplexity) has no path and is refused. A written answer counts as right
    when it is the task's target word for word, so goal=likelihood is for tasks whose targets are free solutions.
    Where less than a tenth of the questions are answered right, by the model or along a path, no router is trained.

    Deviations: beta is 0.99999, as the paper's 0.999 balances hardly at all; fewer questions by default, so that a CPU
    takes minutes, and 100 epochs over them, not 25; a search stops at one saved layer and what it finds is kept as it
    comes, where the released code asks for two (least_saved) and tops up with corrected questions (corrected); the
    released code decides anew for every generated token, here the paper's one decision per prompt is kept. All of them
    are in the table of docs/routing.md.

    Reference: cached decoding equals recomputation without a cache on every supported architecture; pooling, class
    weights and the search are tested against hand-computed cases. The paper's tables have not been reproduced.
    """

    name = "dr-llm"
    paper = "arXiv:2510.12773"
    examples = tuple({"control": control, **_TINY} for control in (0.25, -0.9, -1.0))
    neutral = {"control": 0.5, **_TINY}

    control: Annotated[float, Ge(-1), Le(1)] = -0.5
    windows: Annotated[int, Ge(1)] = 8
    hidden: Annotated[int, Ge(1)] = 128
    epochs: Annotated[int, Ge(1)] = 100
    rate: Annotated[float, Gt(0)] = 1e-3
    beta: Annotated[float, Ge(0), Lt(1)] = 0.99999
    gamma: Annotated[float, Ge(0)] = 2.0

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Search paths, then train the routers on what they see along these.

        Returns the routers as tensors, and as facts the search's results and how well the routers predict the labels
        of held-out questions.

        Raises:
            MethodError: too few questions have a right path to learn from.
            UnsupportedModelError: the layer-path engine does not know the model.
        """
        from harness.methods.routing.features import collect
        from harness.methods.routing.training import Recipe, quality, train

        labels = self.labels(model, study)
        examples = collect(model, labels.kept, self.windows, study.workbench)
        recipe = Recipe(self.hidden, self.epochs, rate=self.rate, beta=self.beta, gamma=self.gamma)
        training, judged = self.held_out(len(examples.labels))
        routers = train(examples, training, recipe, self.seed, study.workbench)
        facts = labels.facts(len(model.anatomy.blocks))
        if len(judged):
            predicted = examples.predicted(routers, judged).flatten()
            facts["routers on held-out questions"] = quality(predicted, examples.labels[judged].flatten())
        tensors = {
            f"router.{layer}.{name}": tensor
            for layer, router in enumerate(routers)
            for name, tensor in router.state_dict().items()
        }
        return Prepared(tensors, facts)

    @contextmanager
    def attach(self, model: "Decoder", prepared: Prepared) -> Iterator[None]:
        """Route every prompt by the trained routers.

        Raises:
            MethodError: the state is not of routers for this model.
        """
        from harness.methods.routing.router import RouterController, load_routers
        from harness.model.paths.layer_path import routed

        controller = RouterController(model, load_routers(model, prepared.tensors), self.windows, self.control)
        with routed(model, controller), model.assisted(controller.auxiliaries):
            yield
