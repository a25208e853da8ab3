"""Which modules are linear layers."""

from torch import nn
from transformers.pytorch_utils import Conv1D

# GPT-2 stores its weights transposed, [in, out], in a class of its own.
LINEAR: tuple[type[nn.Module], ...] = (nn.Linear, Conv1D)
