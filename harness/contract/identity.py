"""What a method is told apart by: its parameters and the source that acts on them; and a model as it is loaded.

Both key what is kept: runs, prepared states and searches. They hold everything that can change an answer and nothing
else: no path, no name of a folder, no source of another method.
"""

import hashlib
import inspect
import json
from abc import ABC
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from harness.core import environment, source
from harness.core.contents import with_contents
from harness.core.source import Source

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder


class Parametrized(Protocol):
    """What a method is told apart by beside its source."""

    name: ClassVar[str]

    def params(self) -> dict[str, Any]:
        """The hyper-parameters by name, as JSON values."""


def method_fingerprint(method: Parametrized) -> str:
    """A digest of the method's class, its parameters (a path by its contents) and the source that acts on them."""
    parameters = {name: getattr(method, name) for name in method.params()}
    paths = {name: value for name, value in parameters.items() if isinstance(value, Path)}
    return digest(
        {
            "class": type(method).__qualname__,
            "name": method.name,
            "params": with_contents(method.params() | paths),
            "source": source_of(type(method)).digest,
        }
    )


def source_of(method: type) -> Source:
    """The closure of imports of the files that define the method's class and the classes that it extends."""
    files: dict[str, bytes] = {}
    libraries: frozenset[str] = frozenset()
    for base in method.__mro__:
        if base in (object, ABC) or base.__module__ in source.DESCRIBES:
            continue
        part = _of_class(base)
        files, libraries = files | part.files, libraries | part.libraries
    return Source(files, libraries)


def _of_class(cls: type) -> Source:
    """A class's closure; that of a loose file counts under the file's name, wherever it lies."""
    try:
        path = Path(inspect.getfile(cls))
    except (OSError, TypeError):  # typed at a prompt
        return Source({cls.__qualname__: b""})
    module = cls.__module__
    if module == "__main__" or module.startswith("harness_loose_"):
        return source.of_file(path, path.name)
    return source.of_modules(module)


def model_identity(model: "Decoder") -> dict[str, str]:
    """What a model's answers depend on beside its weights' files: tokenizer, number format, attention, device."""
    configuration = {name: value for name, value in model.module.config.to_dict().items() if name not in _NAMES}
    return {
        "model": model.fingerprint,
        "tokenizer": tokenizer_digest(model.tokenizer),
        "dtype": str(model.module.dtype).removeprefix("torch."),
        "attention": str(model.module.config._attn_implementation),
        "configuration": digest(configuration)[:16],
        "device": environment.processor(str(model.device)),
    }


_NAMES = {"_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}


def tokenizer_digest(tokenizer: Any) -> str:
    """What a tokenizer makes of text: the whole of a fast one, else its kind, vocabulary and special tokens."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    known: Any = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map]
    if fast is not None:
        # padding and truncation are switched from call to call
        known = {
            name: part for name, part in json.loads(fast.to_str()).items() if name not in ("padding", "truncation")
        }
    return digest(known)[:16]


def digest(value: Any) -> str:
    """Hexadecimal SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
