"""What the methods that learn from searched paths have in common: the search's parameters."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Le

from harness.contract.families import Family
from harness.contract.mixins import Shareable
from harness.contract.study import Needs
from harness.methods.routing.routed import Routed

if TYPE_CHECKING:
    import torch

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study
    from harness.methods.routing.labels import Labels


@dataclass(frozen=True, kw_only=True)
class Searched(Shareable, Routed):
    """A method that is taught by the shortest right paths of training questions.

    Parameters:
        questions: training questions searched, at most.
        simulations: paths tried for each, at most.
        goal: what a path must do: "answer", give the task's right answer (the likeliest choice, or the target written
            greedily); "likelihood", make the right answer as likely as the whole model does.
        stop_early: end a question's search at its first improvement; otherwise it continues for shorter paths, and
            more layers are skipped.
        least_saved: with stop_early, layers that the path of a question that the whole model answers must save to be
            an improvement; the released code asks for 2.
        corrected: the least share, among the questions learnt from, of those that the whole model answers wrong and a
            path right: the others leave, the first first, until it is reached; 0.3 in the released code.
        exploration: weight of the exploration term of UCB.
        length_penalty: weight of the path's length in UCB.
        random_child: probability of following a random child.
        seed: of the trained weights and the order of their examples.
    """

    family = Family.ROUTING
    input_dependent = True
    needs_training = True
    pools_prompt = True

    questions: Annotated[int, Ge(1)] = 128
    simulations: Annotated[int, Ge(1)] = 50
    goal: Literal["answer", "likelihood"] = "answer"
    stop_early: bool = True
    least_saved: Annotated[int, Ge(1)] = 1
    corrected: Annotated[float, Ge(0), Le(1)] = 0.0
    exploration: Annotated[float, Ge(0)] = 1.8
    length_penalty: Annotated[float, Ge(0)] = 3.0
    random_child: Annotated[float, Ge(0), Le(1)] = 0.1
    seed: Annotated[int, Ge(0)] = 0

    @property
    def needs(self) -> Needs:
        """The training questions that are searched."""
        return Needs(questions=self.questions)

    def controls(self, share: float, layers: int) -> tuple[str, ...]:
        """One path of as many layers for all inputs, and layers drawn at random; none where no layer fewer ran."""
        skipped = (1 - share) * layers
        ends = 2 if layers >= 8 and share * layers >= 4 else 0
        protected = "" if ends else ",first=0,last=0"
        fixed = f"static-path:skip={round(skipped)},questions={self.questions},goal={self.goal}"
        drawn = f"random-skip:executed={round(share, 4)}{protected}"
        return (fixed,) * (round(skipped) > 0) + (drawn,) * (share < 0.9999)

    def labels(self, model: "Decoder", study: "Study") -> "Labels":
        """Search the calibration's questions, or resume a search that was interrupted.

        Raises:
            MethodError: too few questions have a right path.
        """
        from harness.methods.routing.labels import find
        from harness.methods.routing.mcts import Settings

        settings = Settings(
            simulations=self.simulations,
            exploration=self.exploration,
            length_penalty=self.length_penalty,
            random_child=self.random_child,
            stop_early=self.stop_early,
            least_saved=self.least_saved,
        )
        return find(model, study, self.questions, self.goal, settings, self.corrected)

    def held_out(self, count: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """Indices of examples to train on, and of a fifth to judge by, where there are at least five."""
        import torch

        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        return order[count // 5 :], order[: count // 5]
