"""What a stack of methods saves on a model and machine: by what each declares, or by the linear layers themselves."""

from typing import TYPE_CHECKING

from harness.contract.facts import Savings, worst
from harness.contract.method import Method
from harness.model.weights.computations import HasKernels, HasOwnKernel
from harness.model.weights.linear import changed
from harness.model.weights.zeros import Zeros

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.stack import Stack


def savings(stack: "Stack", model: "Decoder") -> Savings:
    """What attached methods save: simulated as soon as one part of it is.

    Every linear layer that a method changed says for itself what it saves. A method declares the rest.
    """
    declared = {saves(part, model) for part in stack.acting if not is_said_by_layers(part)}
    return worst(declared | {saved for _, saved in changed(model)})


def saves(method: Method, model: "Decoder") -> Savings:
    """What a method saves besides its linear layers: what it declares, where the kernel that it needs runs."""
    lacks = isinstance(method, HasOwnKernel) and method.unable(model, str(model.device)) is not None
    return Savings.SIMULATED if lacks else method.savings


def is_said_by_layers(method: Method) -> bool:
    """Whether the linear layers say all that a method saves: it has kernels for them, or zeros that others skip."""
    return isinstance(method, HasKernels | Zeros)
