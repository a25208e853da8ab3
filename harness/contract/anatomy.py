"""The parts of a decoder as a method sees them: layers, attention, MLP, norms and head."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Branch:
    """One residual branch of a block: what is added to the residual stream.

    Attributes:
        modules: the modules that compute it, in order: (self_attn,), (mlp,), or (fc1, fc2) where a block has no MLP
            module.
        pre_norm: the norm that reads the residual stream, if any.
        post_norm: the norm applied to the branch's output before it is added, if any.
    """

    modules: "tuple[nn.Module, ...]"
    pre_norm: "nn.Module | None"
    post_norm: "nn.Module | None"

    @property
    def input(self) -> "nn.Module":
        """The module that reads the residual stream."""
        return self.pre_norm if self.pre_norm is not None else self.modules[0]

    @property
    def output(self) -> "nn.Module":
        """The module whose output, a tensor or a tuple starting with it, joins the residual stream."""
        return self.post_norm if self.post_norm is not None else self.modules[-1]

    @property
    def norms(self) -> "tuple[nn.Module, ...]":
        """The norms that exist, in order."""
        return tuple(norm for norm in (self.pre_norm, self.post_norm) if norm is not None)

    def linears(self) -> "list[nn.Module]":
        """The linear layers inside the modules at this moment, in order, so that a replacement is included."""
        from harness.contract.linears import LINEAR

        return [part for module in self.modules for part in module.modules() if isinstance(part, LINEAR)]


@dataclass(frozen=True)
class Block:
    """One decoder layer.

    Attributes:
        index: position in the dense model, from 0.
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
