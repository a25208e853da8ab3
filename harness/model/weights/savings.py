"""What a stack of methods saves on a model and machine: by what each declares, or by the linear layers themselves."""

from typing import TYPE_CHECKING

from harness.contract.facts import Savings, worst
from harness.contract.method import Method
from harness.model.weights.computations import HasKernels
from harness.model.weights.linear import changed
from harness.model.weights.zeros import Zeros

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.stack import Stack


def savings(stack: "Stack", model: "Decoder") -> Savings:
    """What attached methods save: simulated as soon as one part of it is.

    Every linear layer that a method changed says for itself what it saves. A method declares the rest.
    """
    declared = {part.savings for part in stack.acting if not is_said_by_layers(part)}
    return worst(declared | {saved for _, saved in changed(model)})


def is_said_by_layers(method: Method) -> bool:
    """Whether the linear layers say all that a method saves: it has kernels for them, or zeros that others skip."""
    return isinstance(method, HasKernels | Zeros)
