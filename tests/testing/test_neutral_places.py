"""The neutral settings of a method are tried where the method acts."""

from harness.testing.checks.answers import neutral_is_dense
from harness.testing.subject import Subject
from tests.benchmarks.architectures import decoder as architecture


class Experts(Subject):
    """A subject whose model has experts, which methods on linear layers do not reach."""

    def decoder(self, family, **config):
        return architecture(family, **config)


def test_neutral_settings_keep_to_the_chosen_linear_layers():
    stack = Subject.of("wanda:sparsity=0.5,samples=2,length=48,linears=*attn*").stack
    neutral_is_dense(Experts(stack, ["qwen3_moe"]))
