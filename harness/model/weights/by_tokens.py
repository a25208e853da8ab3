"""Linear layers with one product for few tokens and another for many: what wins at one may lose at the other."""

import torch

from harness.contract.facts import Savings
from harness.model.weights.linear import ReplacementLayer


class ByTokens(ReplacementLayer):
    """A linear layer that goes by the number of tokens. Tensors that both products have are kept once.

    Attributes:
        start: tokens of a call from which ``many`` multiplies instead of ``few``.
    """

    def __init__(self, few: ReplacementLayer, start: int, many: ReplacementLayer, name: str) -> None:
        super().__init__()
        tensors = dict(few.named_buffers())
        for key, tensor in list(many.named_buffers()):
            same = tensors.get(key)
            if same is not None and same.dtype == tensor.dtype and torch.equal(same, tensor):
                many.register_buffer(key, same)
        self.few, self.start, self.many = few, start, many
        self.kernel, self.savings = name, Savings.REAL
        self.macs_per_token, self.weight_count = few.macs_per_token, few.weight_count
        few.weight_count = many.weight_count = 0  # they are counted once
        few.format_bytes = many.format_bytes = None  # what is packed is there too

    @property
    def weight_bytes(self) -> int:
        """Bytes that a pass over few tokens reads."""
        return self.few.weight_bytes

    @property
    def more_bytes(self) -> tuple[int, int]:
        """From how many tokens of a pass on other bytes are read, and how many more than by few."""
        return self.start, self.many.weight_bytes - self.few.weight_bytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out], in the type of the input."""
        layer = self.few if x.shape[:-1].numel() < self.start else self.many
        y: torch.Tensor = layer.forward(x)  # nobody's hooks take it for a layer of its own
        return y
