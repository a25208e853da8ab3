"""The parts of a decoder as a method sees them: layers, attention, MLP, norms and head."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.contract.experts import Experts

Role = Literal["query", "key", "value", "output", "gate", "up", "down"]
"""What features of a linear layer are: attention's queries, keys, values and output; the MLP's gate, what the gate
multiplies (or the only expansion, where there is no gate), and the way back."""


@dataclass(frozen=True)
class Slice:
    """The output features of a linear layer that have one role.

    Attributes:
        module: the dense model's linear layer; it may hold other roles too.
        outputs: which of its output features: a slice, or an index tensor [features] where heads interleave; None: all.
    """

    module: "nn.Module"
    outputs: "slice | Tensor | None" = None


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

    @property
    def experts(self) -> "Experts | None":
        """The experts inside the modules, where each token runs some of many."""
        from harness.contract.experts import experts_in

        return experts_in(self.modules)


@dataclass(frozen=True)
class Block:
    """One decoder layer.

    Attributes:
        index: position in the dense model, from 0.
        module: the layer itself.
        parallel: both branches read the block's input and are added together (GPT-NeoX style).
        roles: where queries, keys, values, outputs, gates and the MLP's expansion are, fused linear layers included; a
            role is missing where the layer has none, or keeps it in no linear layer of its own.
    """

    index: int
    module: "nn.Module"
    attention: Branch
    mlp: Branch
    parallel: bool
    roles: Mapping[Role, Slice] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Anatomy:
    """A dense decoder's parts.

    Attributes:
        layout: the name of the layout that matched, such as "llama".
        parent: the module that owns the layer list under the attribute ``layers_name``.
        opaque: why the model runs as dense alone, without blocks here and without FLOPs; None where it does not.
    """

    layout: str
    parent: "nn.Module"
    layers_name: str
    blocks: tuple[Block, ...]
    embedding: "nn.Module"
    final_norm: "nn.Module"
    head: "nn.Module"
    opaque: str | None = None
