"""Compare efficiency methods for language models: what each costs in quality and what it really saves.

The public names of the framework: whatever a method's file needs of it is imported from here. Each comes from its
module on first use, so that ``import harness`` stays fast and free of torch; so do the names of the contract and the
mixins. Engines bring torch with them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.contract.anatomy import Anatomy, Block, Branch
    from harness.contract.decoder import Auxiliary, Decoder, ForwardContext, Row
    from harness.contract.facts import Facts, Phase, Savings
    from harness.contract.families import Family
    from harness.contract.method import Method
    from harness.contract.mixins import OnText, Shareable
    from harness.contract.model_source import ModelSource
    from harness.contract.parameters import Indices, Pattern, Patterns, Sparsity
    from harness.contract.prepared import Prepared
    from harness.contract.study import Needs, Question, Study, Workbench
    from harness.core.errors import HarnessError, MethodError, ModelError, UnknownNameError, UnsupportedModelError
    from harness.model.attention import attending, full_layers, observing, require_attendable, require_observable
    from harness.model.basis import centre, fold, require_layer_norms, rms_norms, rotate
    from harness.model.cache.engine import require_pressable
    from harness.model.cache.mixins import Presses
    from harness.model.cache.press import Entries, Press
    from harness.model.cache.pressed import pressed
    from harness.model.forwards import put, replace_forward
    from harness.model.head import FinalHead
    from harness.model.influence import Influence, influence
    from harness.model.paths.controller import Controller, FixedPaths, Prompts, SkipPaths
    from harness.model.paths.layer_path import require_routable, routed
    from harness.model.paths.path_evaluator import PathEvaluator
    from harness.model.paths.routed_cache import LayerPath
    from harness.model.reshape import Keep, narrowed
    from harness.model.source import locate
    from harness.model.speculation.drafts import Draft, SelfDraft, StatefulDraft
    from harness.model.speculation.part import PartialDraft, drafted_by_part
    from harness.model.speculation.verification import speculated
    from harness.model.surgery import without_blocks, without_branches
    from harness.model.tokens.confidence import Classifier, Confidence, Saturation, SoftmaxResponse
    from harness.model.tokens.exits import EarlyExit, layer_inputs
    from harness.model.tokens.schedule import Schedule
    from harness.model.tokens.token_depth import TokenPolicy, Tokens, token_depth
    from harness.model.training import Loss, Tuned, dense_loss, text_loss, tune
    from harness.model.units import head_weights, heads_of, neurons_of
    from harness.model.weights.compensation import Hessian, compensated
    from harness.model.weights.computations import Computation, Computations, HasKernels, Layer
    from harness.model.weights.kernel_plan import computation
    from harness.model.weights.linear import ReplacementLayer, Site, installed, masked, sites, zeroed
    from harness.model.weights.mixins import OnLinears, OnLinearsAndHead
    from harness.model.weights.observers import AbsMax, Gram, MeanAbs, Observer, SumOfSquares, calibrate, observe
    from harness.model.weights.replaced import dense_names, replaced
    from harness.model.weights.scales import scaled
    from harness.model.weights.zeros import Zeros
    from harness.model.windows import windowed
    from harness.results.record import RunRecord

__version__ = "0.1.0"

_NAMES = {
    "harness.contract.anatomy": "Anatomy Block Branch",
    "harness.contract.decoder": "Auxiliary Decoder ForwardContext Row",
    "harness.contract.facts": "Facts Phase Savings",
    "harness.contract.families": "Family",
    "harness.contract.method": "Method",
    "harness.contract.mixins": "OnText Shareable",
    "harness.contract.model_source": "ModelSource",
    "harness.contract.parameters": "Indices Pattern Patterns Sparsity",
    "harness.contract.prepared": "Prepared",
    "harness.contract.study": "Needs Question Study Workbench",
    "harness.core.errors": "HarnessError MethodError ModelError UnknownNameError UnsupportedModelError",
    "harness.model.attention": "attending full_layers observing require_attendable require_observable",
    "harness.model.basis": "centre fold require_layer_norms rms_norms rotate",
    "harness.model.cache.engine": "require_pressable",
    "harness.model.cache.mixins": "Presses",
    "harness.model.cache.press": "Entries Press",
    "harness.model.cache.pressed": "pressed",
    "harness.model.forwards": "put replace_forward",
    "harness.model.head": "FinalHead",
    "harness.model.influence": "Influence influence",
    "harness.model.paths.controller": "Controller FixedPaths Prompts SkipPaths",
    "harness.model.paths.layer_path": "require_routable routed",
    "harness.model.paths.path_evaluator": "PathEvaluator",
    "harness.model.paths.routed_cache": "LayerPath",
    "harness.model.reshape": "Keep narrowed",
    "harness.model.source": "locate",
    "harness.model.speculation.drafts": "Draft SelfDraft StatefulDraft",
    "harness.model.speculation.part": "PartialDraft drafted_by_part",
    "harness.model.speculation.verification": "speculated",
    "harness.model.surgery": "without_blocks without_branches",
    "harness.model.tokens.confidence": "Classifier Confidence Saturation SoftmaxResponse",
    "harness.model.tokens.exits": "EarlyExit layer_inputs",
    "harness.model.tokens.schedule": "Schedule",
    "harness.model.tokens.token_depth": "TokenPolicy Tokens token_depth",
    "harness.model.training": "Loss Tuned dense_loss text_loss tune",
    "harness.model.units": "head_weights heads_of neurons_of",
    "harness.model.weights.compensation": "Hessian compensated",
    "harness.model.weights.computations": "Computation Computations HasKernels Layer",
    "harness.model.weights.kernel_plan": "computation",
    "harness.model.weights.linear": "ReplacementLayer Site installed masked sites zeroed",
    "harness.model.weights.mixins": "OnLinears OnLinearsAndHead",
    "harness.model.weights.observers": "AbsMax Gram MeanAbs Observer SumOfSquares calibrate observe",
    "harness.model.weights.replaced": "dense_names replaced",
    "harness.model.weights.scales": "scaled",
    "harness.model.weights.zeros": "Zeros",
    "harness.model.windows": "windowed",
    "harness.results.record": "RunRecord",
}
"""Public names by the module that has them."""

_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "AbsMax",
    "Anatomy",
    "Auxiliary",
    "Block",
    "Branch",
    "Classifier",
    "Computation",
    "Computations",
    "Confidence",
    "Controller",
    "Decoder",
    "Draft",
    "EarlyExit",
    "Entries",
    "Facts",
    "Family",
    "FinalHead",
    "FixedPaths",
    "ForwardContext",
    "Gram",
    "HarnessError",
    "HasKernels",
    "Hessian",
    "Indices",
    "Influence",
    "Keep",
    "Layer",
    "LayerPath",
    "Loss",
    "MeanAbs",
    "Method",
    "MethodError",
    "ModelError",
    "ModelSource",
    "Needs",
    "Observer",
    "OnLinears",
    "OnLinearsAndHead",
    "OnText",
    "PartialDraft",
    "PathEvaluator",
    "Pattern",
    "Patterns",
    "Phase",
    "Prepared",
    "Press",
    "Presses",
    "Prompts",
    "Question",
    "ReplacementLayer",
    "Row",
    "RunRecord",
    "Saturation",
    "Savings",
    "Schedule",
    "SelfDraft",
    "Shareable",
    "Site",
    "SkipPaths",
    "SoftmaxResponse",
    "Sparsity",
    "StatefulDraft",
    "Study",
    "SumOfSquares",
    "TokenPolicy",
    "Tokens",
    "Tuned",
    "UnknownNameError",
    "UnsupportedModelError",
    "Workbench",
    "Zeros",
    "__version__",
    "attending",
    "calibrate",
    "centre",
    "compensated",
    "computation",
    "dense_loss",
    "dense_names",
    "drafted_by_part",
    "fold",
    "full_layers",
    "head_weights",
    "heads_of",
    "influence",
    "installed",
    "layer_inputs",
    "locate",
    "masked",
    "narrowed",
    "neurons_of",
    "observe",
    "observing",
    "pressed",
    "put",
    "replace_forward",
    "replaced",
    "require_attendable",
    "require_layer_norms",
    "require_observable",
    "require_pressable",
    "require_routable",
    "rms_norms",
    "rotate",
    "routed",
    "scaled",
    "sites",
    "speculated",
    "text_loss",
    "token_depth",
    "tune",
    "windowed",
    "without_blocks",
    "without_branches",
    "zeroed",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
