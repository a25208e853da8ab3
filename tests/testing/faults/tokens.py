"""Methods whose tokens skip layers, wrong in one way."""

from harness.contract.families import Family
from harness.contract.method import Method
from harness.model.tokens.token_depth import TokenPolicy, token_depth
from tests.testing.faults.declared import fault


class _EveryOther(TokenPolicy):
    """Every second token that is written skips a layer, and the ones between look back at what it left."""

    def fills(self, layer):
        return False

    def begin(self, tokens):
        self.now = tokens.steps % 2 == 0

    def runs(self, layer, states):
        return self.now if layer == 2 else None


@fault("supported-models")
class LeavesHoles(Method):
    """Fills no layer although later tokens run what earlier ones skipped: refused wherever it runs."""

    name = "leaves-holes"
    family = Family.EARLY_EXIT
    directs_layers = True

    def attach(self, model, prepared):
        return token_depth(model, _EveryOther())
