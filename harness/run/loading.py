"""The model of a job: where it is, which device takes it, and how it is loaded."""

import inspect
import re
import warnings
from typing import TYPE_CHECKING, Any, cast

from harness.contract.decoder import Decoder
from harness.contract.identity import tokenizer_digest
from harness.contract.model_source import ModelSource
from harness.core.errors import HarnessError, MethodError, ModelError, UnknownNameError
from harness.core.files import parse_json
from harness.core.progress import Progress
from harness.core.strangers import message_of
from harness.evaluate.quiet import collected_warnings
from harness.measure.gpu import driver_version
from harness.model.conversions import Say
from harness.model.source import locate
from harness.run.spec import ModelSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from harness.contract.method import Method
    from harness.evaluate.lm import HarnessLM


def source_of(settings: ModelSettings, say: Say = lambda _: None) -> ModelSource:
    """Where the model is; ``say`` is told what takes a while.

    Raises:
        ModelError: no such model.
    """
    args = settings.model_args
    subfolder, gguf_file = (str(args.get(name) or "") for name in ("subfolder", "gguf_file"))
    return locate(settings.pretrained, args.get("revision"), subfolder, gguf_file, say)


def device_of(settings: ModelSettings) -> str:
    """The torch device: the user's, else a GPU where there is one.

    Raises:
        HarnessError: torch has no such device here.
    """
    import torch

    return require_device(settings.device or ("cuda:0" if torch.cuda.is_available() else "cpu"))


def require_device(chosen: str) -> str:
    """The torch device of that name.

    Raises:
        HarnessError: torch has no such device here.
    """
    import torch

    kind, _, index = chosen.partition(":")
    if kind == "cuda" and (reason := why_no_cuda()):
        raise HarnessError(f"--device {chosen}: {reason}; try --device cpu")
    if kind == "cuda" and index.isdigit() and int(index) >= torch.cuda.device_count():
        raise HarnessError(f"--device {chosen}: torch sees {torch.cuda.device_count()} CUDA device(s), from cuda:0")
    # lm-eval takes its own default in place of a name that it does not know
    if chosen not in ("cpu", "cuda", "mps", "mps:0") and not (kind == "cuda" and index.isdigit()):
        raise HarnessError(f"--device {chosen}: expected cpu, cuda, cuda:0, ... or mps")
    return chosen


def why_no_cuda() -> str | None:
    """Why torch can use no CUDA device here, as the end of a sentence; None where it can."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CUDA initialization", UserWarning)  # of what is said here in a sentence
        if torch.cuda.is_available():
            return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built for the CPU alone, without CUDA"
    driver = driver_version()
    if driver is None:
        return "this machine has no CUDA device that torch can use"
    return (
        f"torch {torch.__version__} cannot use the driver {driver}: it is built for CUDA {torch.version.cuda}, which "
        "may need a newer driver"
    )


def outline(settings: ModelSettings, source: ModelSource) -> Decoder:
    """The model without its weights: shapes, types and names of its parts, from its configuration alone.

    It has no tokenizer, and cannot run.

    Raises:
        ModelError: it cannot be built.
        UnsupportedModelError: its parts cannot be found.
    """
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoConfig, AutoModelForCausalLM

    from harness.model.layouts import dissect

    # what lm-eval takes for itself is no part of a configuration
    own = inspect.signature(HFLM.__init__).parameters.keys() - {"revision", "subfolder"}
    args = {name: value for name, value in settings.model_args.items() if name not in own}
    code = {"trust_remote_code": settings.trust_remote_code}
    try:
        with collected_warnings("transformers"):
            config = AutoConfig.from_pretrained(source.loadable, **code, **args)
            dtype = _dtype(settings.model_args.get("dtype", "auto"), config, source)
            with torch.device("meta"):
                module = AutoModelForCausalLM.from_config(config, dtype=dtype, **code)
    except Exception as error:  # a stranger's configuration; whatever fails is about the model
        raise _unloadable(settings, error) from error
    return Decoder(module, None, dissect(module), source.fingerprint)


def _dtype(wanted: Any, config: Any, source: ModelSource) -> "torch.dtype":
    """The number format that the model is loaded in: of "auto", its configuration's, else that of its weights."""
    import torch
    from safetensors import safe_open

    if wanted not in ("auto", None):
        return wanted if isinstance(wanted, torch.dtype) else cast("torch.dtype", getattr(torch, str(wanted)))
    if config.dtype is not None:
        return cast("torch.dtype", config.dtype)
    for path in sorted(source.folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            types = [file.get_slice(name)[:0].dtype for name in file.keys()]  # noqa: SIM118
        return next((each for each in types if each.is_floating_point), torch.float32)
    return torch.float32


def beside(settings: ModelSettings, checkpoint: ModelSource, dtype: "torch.dtype") -> ModelSettings:
    """How another checkpoint is loaded beside the model of these settings, so that the two differ in weights alone.

    From safetensors and without code of its own, in the number format of the model.
    """
    places = ("revision", "subfolder", "gguf_file")
    kept = {name: value for name, value in settings.model_args.items() if name not in places}
    return ModelSettings(
        pretrained=checkpoint.pretrained,
        model_args=kept | {"dtype": str(dtype).removeprefix("torch."), "use_safetensors": True},
        device=settings.device,
        batch_size=settings.batch_size,
        apply_chat_template=settings.apply_chat_template,
    )


def require_comparable(settings: ModelSettings, source: ModelSource, checkpoint: ModelSource, label: str) -> None:
    """Refuse a checkpoint that cannot stand beside the model: which reads text otherwise, or cannot be counted.

    Raises:
        ModelError: its tokenizer, or its chat template where it is used, is another one, or cannot be loaded; its
            weights are quantized, which no formula here counts.
    """
    config = parse_json((checkpoint.folder / "config.json").read_bytes())
    if "quantization_config" in config:
        raise ModelError(
            f"{label}: the checkpoint {checkpoint.pretrained!r} is quantized (quantization_config in its "
            "config.json), and what its layers compute cannot be counted: store it with dequantized weights"
        )
    args = settings.model_args
    where = {name: args[name] for name in ("revision", "subfolder") if name in args and "tokenizer" not in args}
    place = args.get("tokenizer") or source.loadable
    own = _tokenizer_of(place, trust_remote_code=settings.trust_remote_code, **where)
    other = _tokenizer_of(checkpoint.loadable, trust_remote_code=False)
    if tokenizer_digest(own) != tokenizer_digest(other) or own.special_tokens_map != other.special_tokens_map:
        raise ModelError(
            f"{label}: the checkpoint {checkpoint.pretrained!r} has another tokenizer than {settings.pretrained}, so "
            "that what they take for a token cannot be compared: give a checkpoint with the same tokenizer"
        )
    if settings.apply_chat_template and own.chat_template != other.chat_template:
        raise ModelError(
            f"{label}: the checkpoint {checkpoint.pretrained!r} has another chat template than {settings.pretrained}: "
            "run without --apply_chat_template"
        )


def _tokenizer_of(place: str, trust_remote_code: bool, **where: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code, **where)
    except Exception as error:  # a stranger's files; whatever fails is about the tokenizer
        raise ModelError(f"the tokenizer of {place!r} is missing or cannot be loaded: {message_of(error)}") from error


def load(settings: ModelSettings, source: ModelSource, device: str, progress: Progress) -> "HarnessLM":
    """Load the model.

    Raises:
        ModelError: it cannot be loaded.
        UnsupportedModelError: its parts cannot be found.
    """
    import torch
    from lm_eval.models.huggingface import HFLM

    from harness.evaluate.lm import HarnessLM
    from harness.measure.arithmetic import advise

    progress.say(f"loading {settings.pretrained} on {device}")
    args = {"trust_remote_code": settings.trust_remote_code, **settings.model_args}
    args.pop("gguf_file", None)  # what is loaded are its weights as floats
    args |= _placement(args.pop("device_map", None), args.pop("parallelize", None))
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # kernels start, and events are recorded, on torch's current device
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
            raise _unloadable(settings, error) from error
        known = inspect.signature(HFLM.__init__).parameters
        raise UnknownNameError("model argument", name, known, see="Neither lm-eval nor the model takes it.") from error
    except Exception as error:  # loading runs a stranger's configuration; whatever fails is about the model
        raise _unloadable(settings, error) from error
    require_on_cards(lm.decoder)
    if settings.apply_chat_template:
        lm.use_chat_template(settings.apply_chat_template)
    advise(lm.decoder, progress.say)
    return lm


def _placement(device_map: Any, parallelize: Any) -> dict[str, Any]:
    """Arguments with which lm-eval spreads a model over devices; without ``parallelize`` it ignores ``device_map``.

    Raises:
        ModelError: there is no GPU to spread it over.
    """
    import torch

    if not parallelize and device_map is None:
        return {}
    if torch.cuda.is_available() or isinstance(device_map, dict):
        return {"parallelize": True, "device_map": "auto" if device_map is None else device_map}
    if parallelize:
        # all of it would go to the disk
        raise ModelError(f"model argument parallelize={parallelize}: {why_no_cuda()}, to spread the model over")
    return {}  # all of it is on the one device that there is


def require_on_cards(model: Decoder) -> None:
    """Refuse a model of which a part waits in the processor's memory or on the disk: its times are of the transport.

    Raises:
        ModelError: so it is.
    """
    places = dict(getattr(model.module, "hf_device_map", None) or {})
    away = [part for part, place in places.items() if str(place) == "disk"]
    if len(set(map(str, places.values()))) > 1:
        away = [part for part, place in places.items() if str(place) in ("cpu", "disk")]
    if away:
        raise ModelError(
            f"the devices are too small for the model: {away[0] or 'all of it'}"
            + (f" and {len(away) - 1} more parts" if away[1:] else "")
            + " would wait in the processor's memory or on the disk, which nothing here counts: give more devices, or "
            "a smaller dtype"
        )


def require_spanning(model: Decoder, methods: "Iterable[Method]") -> None:
    """Refuse methods that need the whole model on one device, where it is spread over several.

    Raises:
        MethodError: one of them does.
    """
    if len(model.devices) == 1:
        return
    for method in methods:
        if not method.spans_devices:
            places = ", ".join(map(str, model.devices))
            raise MethodError(
                f"{method.label} cannot be on a model that is spread over devices ({places}): what it decides or keeps "
                "for several layers is on one device; give a device that holds the whole model, without device_map or "
                "parallelize"
            )


def _unexpected(error: TypeError, settings: ModelSettings) -> str | None:
    """The user's model argument that something refused by its name."""
    named = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    return named[1] if named and named[1] in settings.model_args else None


def _unloadable(settings: ModelSettings, error: Exception) -> ModelError:
    return ModelError(f"model {settings.pretrained!r} cannot be loaded: {message_of(error)}")
