"""Static path: the control that a router must beat, one path for all inputs."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.contract.study import Needs
from harness.core.errors import MethodError
from harness.methods.routing.routed import Routed

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.study import Study
    from harness.model.paths.routed_cache import LayerPath


@dataclass(frozen=True, kw_only=True)
class StaticPath(Routed):
    """Leave out the same layers for every input: those whose removal costs the fewest right answers.

    How: layers are removed one at a time. At each step every remaining layer is tried on the task's training questions;
    the layer whose removal keeps the most questions right is removed, and ties are broken by the larger margin of the
    right answers. A router that does not beat this path at the same number of layers has learnt nothing from the input.

    Parameters:
        skip: how many layers are removed, from 0.
        questions: training questions that decide, at most.
        goal: what counts: "answer", the task's right answer; "likelihood", that the right answer stays as likely.

    Limits: chosen greedily: the best pair of layers need not hold the best single one.

    Reference: equals layer-drop of the same layers, logit for logit; the greedy choice is tested against all choices.
    """

    name = "static-path"
    family = Family.ROUTING
    examples = tuple({"skip": skip, "questions": 4} for skip in (1, 2, 3))
    neutral = {"skip": 0, "questions": 4}

    skip: Annotated[int, Ge(0)] = 3
    questions: Annotated[int, Ge(1)] = 96
    goal: Literal["answer", "likelihood"] = "answer"

    @property
    def needs(self) -> Needs:
        """The training questions that decide."""
        return Needs(questions=self.questions)

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse to remove more layers than the model has."""
        super().check_model(model, below)
        layers = len(model.anatomy.blocks)
        if self.skip > layers:
            raise MethodError(f"static-path: skip={self.skip} is out of range for this model; from 0 to {layers}")

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Choose the path.

        Returns facts alone: the ``path``, and after each removal the share of questions answered right.

        Raises:
            MethodError: ``skip`` is more layers than the model has.
        """
        from harness.methods.routing.labels import questions
        from harness.methods.routing.trials import Trials

        self.check_model(model)
        layers = len(model.anatomy.blocks)
        path: LayerPath = (1,) * layers
        if not self.skip:
            return Prepared(facts={"path": list(path), "steps": []})
        steps: list[dict[str, Any]] = []
        asked = questions(model, study, self.questions)
        trials = Trials(model, asked, self.goal, study.workbench)
        trials.announce(f"searching {self.label}", sum(layers - step for step in range(self.skip)))
        with study.workbench.bar(f"searching {self.label}") as bar:
            for _ in range(self.skip):
                shorter = [(*path[:i], 0, *path[i + 1 :]) for i in range(layers) if path[i]]
                worth = trials.worth(shorter, bar)
                right, _, path = max((*values, each) for values, each in zip(worth, shorter, strict=True))
                steps.append({"path": list(path), "right": right / len(asked)})
        return Prepared(facts={"path": list(path), "steps": steps})

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[Any]:
        """Run every input along the path."""
        from harness.model.paths.controller import FixedPaths
        from harness.model.paths.layer_path import routed

        return routed(model, FixedPaths((tuple(prepared.facts["path"]),)))
