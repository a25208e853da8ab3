"""Faults of methods with an attention of their own."""

from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.contract.method import Method
from harness.model.attention import attending, visible
from tests.testing.faults.declared import fault
from tests.testing.sound import Sound


def product(q, k, v, mask, scale):
    """Attention, and its pairs."""
    groups = q.shape[1] // k.shape[1]
    k, v = (tensor.repeat_interleave(groups, 1) for tensor in (k, v))
    return scaled_dot_product_attention(q, k, v, mask, scale=scale), q[..., 0].numel() * k.shape[2]


class Attending(Method):
    """Computes all attention by ``attend``."""

    name = "attending"
    family = Family.SPARSE
    savings = Savings.NONE

    def attach(self, model, prepared):
        return attending(model, self.attend, name=self.name)


@fault("decides-from-the-prompt", "cached-decoding", "padding-changes-nothing")
class LosesCausality(Attending):
    """Lets every query read every key."""

    def attend(self, layer, q, k, v, mask, scale):
        return product(q, k, v, None, scale)


@fault("counts-what-runs", "saves-measurably")
class UnderstatesItsPairs(Attending):
    """Multiplies everything, with the scores of far keys hidden, and says that it multiplied half."""

    savings = Savings.REAL

    def attend(self, layer, q, k, v, mask, scale):
        output, pairs = product(q, k, v, visible(mask, q.shape[2], k.shape[2], q.device), scale)
        return output, pairs // 2


@fault("restores-the-process")
class LeavesItsFunction(Sound):
    """Registers an attention function and leaves it there."""

    def attach(self, model, prepared):
        name = f"left-{len(AttentionInterface._global_mapping)}"
        AttentionInterface.register(name, AttentionInterface._global_mapping["sdpa"])
        return super().attach(model, prepared)
