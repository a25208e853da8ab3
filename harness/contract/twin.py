"""A second model of the same weights, which stays dense whatever is done to the first."""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from harness.contract.decoder import Decoder

if TYPE_CHECKING:
    import torch


def twin(model: Decoder) -> Decoder:
    """The model as it stands now, with modules of its own that read the same memory of weights.

    Modules, hooks, parameters and configuration of the one can be replaced, and the other does not see it. What would
    be seen is a weight that is written over in place, which no method does.
    """
    from torch import nn

    def alias(tensor: "torch.Tensor") -> "torch.Tensor":
        # a quantised weight may be a class of its own with a state beside its numbers
        return nn.Parameter(tensor.detach(), requires_grad=False) if type(tensor) is nn.Parameter else tensor

    tensors = [*model.module.parameters(), *model.module.buffers()]
    shared: dict[int, Any] = {id(tensor): alias(tensor) for tensor in tensors}
    module, anatomy = deepcopy((model.module, model.anatomy), shared)
    return Decoder(module, model.tokenizer, anatomy, model.fingerprint, model.autocast)
