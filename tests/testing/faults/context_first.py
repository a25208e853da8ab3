"""Faults that only show where a text is scored context first."""

from contextlib import contextmanager

from harness.contract.facts import Phase, Savings
from harness.contract.families import Family
from harness.contract.method import Method
from tests.testing.faults.declared import fault


class Fading(Method):
    """Halves the output of an MLP once the prompt was read."""

    name = "fading"
    family = Family.CONTEXT
    savings = Savings.SIMULATED
    phases = frozenset({Phase.DECODE})

    @contextmanager
    def attach(self, model, prepared):
        def fade(module, args, output):
            return output * self.factor(model.context) if model.context is not None else output

        handle = model.anatomy.blocks[1].mlp.output.register_forward_hook(fade)
        try:
            yield
        finally:
            handle.remove()

    def factor(self, context):
        return 0.5 if context.decoding else 1.0


@fault("affects-its-phases")
class WritesOnly(Fading):
    """Goes by the kind of the request, so that no scored task would ever show it."""

    def factor(self, context):
        return 0.5 if context.kind == "generate" and context.decoding else 1.0


@fault("decides-from-the-prompt")
class KnowsTheEnd(Fading):
    """Goes by the length of the text, which is not known before it is written."""

    def factor(self, context):
        length = max(row.length - row.prompt_length for row in context.rows)
        return 1 / (2 + length) if context.decoding else 1.0
