"""Which models a method works on, and how it refuses the others."""

from harness.core.errors import UnsupportedModelError
from harness.testing.check import raised
from harness.testing.outcome import Failed
from harness.testing.subject import FAMILIES, Subject, refusal

_UNUSUAL = ("mistral", "gemma2", "phi3", "gpt_neox_sequential", "olmo2")


def supported_models(subject: Subject) -> None:
    """Every model is supported or refused in words, by MethodError or UnsupportedModelError.

    Tried are the families of the other checks and, unless families were chosen, some that mix attention windows, fuse
    projections or place their norms differently.
    """
    attempts = dict(subject.attempts)
    if subject.families == FAMILIES:
        attempts |= {family: subject.attempt(family) for family in _UNUSUAL}
    for family, error in attempts.items():
        if error is not None and not refusal(error):
            raise Failed(f"{family}: it {raised(error)}; a model that it cannot handle is an UnsupportedModelError")
        if isinstance(error, UnsupportedModelError):
            _require_named(subject, family, error)
    if all(attempts.values()):
        first = next(error for error in attempts.values() if error)
        raise Failed(f"it refuses every model tried: {', '.join(attempts)}; the first with: {first}")


def _require_named(subject: Subject, family: str, error: UnsupportedModelError) -> None:
    decoder = subject.decoder(family)
    names = {family, decoder.module.config.model_type, type(decoder.module).__name__, decoder.anatomy.layout}
    if not any(name.lower() in str(error).lower() for name in names):
        raise Failed(f"{family}: the refusal does not name the model (one of {', '.join(sorted(names))}): {error}")
