"""The model of a job: where it is, which device takes it, and how it is loaded."""

import inspect
import re
from typing import TYPE_CHECKING

from harness.core.errors import HarnessError, ModelError, UnknownNameError
from harness.core.progress import Progress
from harness.core.strangers import text_of
from harness.evaluate.quiet import collected_warnings
from harness.model.source import ModelSource, locate
from harness.run.spec import ModelSettings

if TYPE_CHECKING:
    from harness.evaluate.lm import HarnessLM


def source_of(settings: ModelSettings) -> ModelSource:
    """Where the model is.

    Raises:
        ModelError: no such model.
    """
    args = settings.model_args
    return locate(settings.pretrained, args.get("revision"), str(args.get("subfolder") or ""))


def device_of(settings: ModelSettings) -> str:
    """The torch device: the user's, else a GPU where there is one.

    Raises:
        HarnessError: torch has no such device here.
    """
    import torch

    chosen = settings.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    kind, _, index = chosen.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise HarnessError(f"--device {chosen}: this machine has no CUDA device that torch can use; try --device cpu")
    if kind == "cuda" and index.isdigit() and int(index) >= torch.cuda.device_count():
        raise HarnessError(f"--device {chosen}: torch sees {torch.cuda.device_count()} CUDA device(s), from cuda:0")
    # lm-eval takes its own default in place of a name that it does not know
    if chosen not in ("cpu", "cuda", "mps", "mps:0") and not (kind == "cuda" and index.isdigit()):
        raise HarnessError(f"--device {chosen}: expected cpu, cuda, cuda:0, ... or mps")
    return chosen


def load(settings: ModelSettings, source: ModelSource, device: str, progress: Progress) -> "HarnessLM":
    """Load the model.

    Raises:
        ModelError: it cannot be loaded.
        UnsupportedModelError: its parts cannot be found.
    """
    from lm_eval.models.huggingface import HFLM

    from harness.evaluate.lm import HarnessLM
    from harness.measure.arithmetic import advise

    progress.say(f"loading {settings.pretrained} on {device}")
    args = {"trust_remote_code": settings.trust_remote_code, **settings.model_args}
    try:
        with collected_warnings("lm_eval", "transformers", "accelerate"):
            lm = HarnessLM(
                pretrained=source.loadable,
                fingerprint=source.fingerprint,
                device=device,
                batch_size=settings.batch_size,
                **args,
            )
    except HarnessError:
        raise
    except TypeError as error:
        name = _unexpected(error, settings)
        if name is None:
            raise ModelError(f"model {settings.pretrained!r} cannot be loaded: {error}") from error
        known = inspect.signature(HFLM.__init__).parameters
        raise UnknownNameError("model argument", name, known, see="Neither lm-eval nor the model takes it.") from error
    except Exception as error:  # loading runs a stranger's configuration; whatever fails is about the model
        reason = text_of(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(f"model {settings.pretrained!r} cannot be loaded: {reason}") from error
    if settings.apply_chat_template:
        lm.use_chat_template(settings.apply_chat_template)
    advise(lm.decoder, progress.say)
    return lm


def _unexpected(error: TypeError, settings: ModelSettings) -> str | None:
    """The user's model argument that something refused by its name."""
    named = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    return named[1] if named and named[1] in settings.model_args else None
