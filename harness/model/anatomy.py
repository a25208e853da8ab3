"""The parts of a decoder: layers, attention, MLP, norms and head, found by layout and refused by name otherwise."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Branch:
    """One residual branch of a block: what is added to the residual stream.

    Attributes:
        modules: what computes it, in order: (self_attn,), (mlp,), or (fc1, fc2) where a block has no MLP module.
        pre_norm: the norm that reads the residual stream, if any.
        post_norm: the norm applied to the branch's output before it is added, if any.
    """

    modules: tuple["nn.Module", ...]
    pre_norm: "nn.Module | None"
    post_norm: "nn.Module | None"

    @property
    def output(self) -> "nn.Module":
        """The module whose output is added to the residual stream (a tensor, or a tuple that starts with it)."""
        return self.post_norm if self.post_norm is not None else self.modules[-1]


@dataclass(frozen=True)
class Block:
    """One decoder layer.

    Attributes:
        index: its place in the dense model.
        module: the layer itself.
        parallel: both branches read the block's input and are added together (GPT-NeoX style).
    """

    index: int
    module: "nn.Module"
    attention: Branch
    mlp: Branch
    parallel: bool


@dataclass(frozen=True)
class Anatomy:
    """A dense decoder's parts.

    Attributes:
        layout: the name of the layout that matched, such as "llama".
        parent: the module that owns the layer list under the attribute ``layers_name``.
    """

    layout: str
    parent: "nn.Module"
    layers_name: str
    blocks: tuple[Block, ...]
    embedding: "nn.Module"
    final_norm: "nn.Module"
    head: "nn.Module"
