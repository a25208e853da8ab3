"""GGUF checkpoints: their weights as floats, in a folder of the user's cache that loads as any other does."""

import errno
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from harness.core.contents import digest_of_files
from harness.core.errors import DiskError, HarnessError, ModelError
from harness.core.files import saving_tensors
from harness.core.paths import cache_folder
from harness.core.rounding import Format, Rounding
from harness.core.strangers import message_of
from harness.model.conversions import Say, made_once, place_of
from harness.model.gguf_header import Header, is_gguf, read_header

BESIDE: Final = (
    *("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("chat_template*", "additional_chat_templates/*.jinja"),
)
"""Files beside a GGUF file that transformers prefers to what it holds itself."""
_UNREAD: Final = ("rope_freqs", "rope_factors")  # such as Llama 3.1's, of which transformers makes nothing
_BLOCK: Final = re.compile(r"blk\.(\d+)\.")
_FLOAT32_BYTES: Final = 4


@dataclass(frozen=True)
class Converted:
    """A converted checkpoint.

    Attributes:
        fingerprint: digest of the file's contents, and of the tokenizer's files beside it if there are any.
        rounding: how its weights were rounded; None where the file holds plain floats.
    """

    folder: Path
    fingerprint: str
    rounding: Rounding | None


def converted(file: Path, say: Say) -> Converted:
    """A GGUF file as a folder of safetensors, made at its first use.

    It is kept by the contents and by the release of transformers that made it; processes wait for each other.

    Raises:
        ModelError: no GGUF file, or one that is damaged, or of a model that transformers cannot read; or the reader
            is not installed; or the file is changed while it is read.
        DiskError: the cache has no room, or cannot be written.
    """
    if not is_gguf(file):
        raise ModelError(
            f"{file} is not a GGUF file: it does not begin with the letters GGUF. A model is a folder, a GGUF file, or "
            "a name: see `harness ls models`"
        )
    state = _state(file)
    fingerprint = fingerprint_of(file)
    folder = place_of(fingerprint)

    def make(staging: Path) -> Rounding | None:
        header = read_header(file)
        rounding = _checked(file, header)
        say(f"converting {file.name} to safetensors, once, into {folder}")
        if unread := [tensor.name for tensor in header.tensors if tensor.name.startswith(_UNREAD)]:
            say(f"transformers reads no {unread[0]}: rotations are those of the unscaled model, in lm-eval too")
        _convert(file, header, staging)
        if _state(file) != state:
            raise ModelError(f"{file} was changed while it was read: wait until it is whole, then try again")
        return rounding

    return Converted(folder, fingerprint, made_once(folder, make))


def require_reader(what: object) -> None:
    """Refuse what is in GGUF where the package that reads it is not installed.

    Raises:
        ModelError: it is not.
    """
    if find_spec("gguf") is None:
        raise ModelError(f"{what}: reading GGUF needs the package gguf: pip install 'efficiency-harness[gguf]'")


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def fingerprint_of(file: Path) -> str:
    """Of a GGUF file's contents, and of the tokenizer's files beside it."""
    with file.open("rb") as content:
        digest = f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
    beside = {path for pattern in BESIDE for path in file.parent.glob(pattern) if path.is_file()} - {file}
    return f"{digest}+{digest_of_files(file.parent, beside)}" if beside else digest


def _checked(file: Path, header: Header) -> Rounding | None:
    """Refuse what cannot be converted, as far as the header tells; how the weights are rounded.

    Raises:
        ModelError: it is truncated, damaged or a part, has no tensors or no tokenizer, or a format that is not known
            here; or the reader is not installed.
        DiskError: the cache has no room for its weights.
    """
    require_reader(file)
    if (parts := header.metadata.get("split.count", 1)) not in (0, 1):
        raise ModelError(f"{file} is one of {parts} parts of a model: merge them first (llama-gguf-split --merge)")
    if not header.architecture:
        raise ModelError(f"{file} does not say of which architecture its model is (general.architecture)")
    if not header.tensors:
        raise ModelError(f"{file} holds no weights, a vocabulary at the most")
    _refuse_layers(file, header)
    counts: Counter[str] = Counter()
    places = []
    groups: dict[str, int] = {}
    for tensor in header.tensors:
        name, group, group_bytes = _format(file, tensor.format)
        counts[name] += tensor.parameters
        groups[name] = group
        if not tensor.parameters:
            raise ModelError(f"{file} is damaged: {tensor.name} has a dimension of 0")
        if tensor.row % group:
            raise ModelError(f"{file} is damaged: {tensor.name} has rows of {tensor.row}, which {name} cannot divide")
        end = header.data + tensor.offset + tensor.parameters // group * group_bytes
        if end > header.size:
            raise ModelError(
                f"{file} is truncated: the data of {tensor.name} ends at byte {end:,}, the file at {header.size:,}"
            )
        places.append((tensor.offset, end - header.data, tensor.name))
    places.sort()
    for (_, end, first), (start, _, second) in pairwise(places):
        if start < end:
            raise ModelError(f"{file} is damaged: the data of {first} and {second} overlap")
    if not header.metadata.get("tokenizer.ggml.model") or not header.metadata.get("tokenizer.ggml.tokens"):
        raise ModelError(f"{file} has no tokenizer: convert the model again with one, as llama.cpp's converter does")
    needed, free = counts.total() * _FLOAT32_BYTES, shutil.disk_usage(cache_folder()).free
    if needed > free:
        raise DiskError(
            f"{file}: its weights take {needed / 1e9:.1f} GB as floats, and {cache_folder()} has {free / 1e9:.1f} GB "
            "left: free some, or set HARNESS_CACHE to another place"
        )
    rounded = [name for name in counts if groups[name] > 1]
    if not rounded:
        return None
    total = counts.total()
    formats = {name: Format(share=count / total, group=groups[name]) for name, count in counts.most_common()}
    return Rounding(format=max(rounded, key=lambda name: counts[name]), formats=formats)


def _refuse_layers(file: Path, header: Header) -> None:
    """Refuse a file that holds other layers than it says: it would be read as a shorter model, or an endless one.

    Raises:
        ModelError: it does.
    """
    key = f"{header.architecture}.block_count"
    named = header.metadata.get(key)
    layers = {match[1] for tensor in header.tensors if (match := _BLOCK.match(tensor.name))}
    if layers and named != len(layers):
        raise ModelError(f"{file} is damaged: it holds {len(layers)} layers, and its {key} is {named}")


def _format(file: Path, number: int) -> tuple[str, int, int]:
    """A format's name, the parameters of one of its groups, and their bytes."""
    import gguf
    import numpy as np

    known = {int(kind): kind for kind in gguf.GGMLQuantizationType}
    name = known[number].name if number in known else f"number {number}"
    try:
        group, group_bytes = gguf.GGML_QUANT_SIZES[known[number]]
        gguf.dequantize(np.zeros((1, group_bytes), np.uint8), known[number])
    except (KeyError, NotImplementedError):
        raise ModelError(
            f"{file} has weights in the format {name}, which gguf {version('gguf')} does not turn into floats"
        ) from None
    return name, group, group_bytes


def _convert(file: Path, header: Header, target: Path) -> None:
    """Write the model and its tokenizer into a folder, in the floats that transformers reads the file as.

    Raises:
        ModelError: transformers cannot read it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place: dict[str, Any] = {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": file.name,
        "trust_remote_code": False,  # nor asked about
    }
    reader = f"transformers {version('transformers')}"
    with _refusing(f"{file} cannot be read by {reader} as a decoder of the architecture {header.architecture!r}"):
        config = AutoConfig.from_pretrained(**place)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    with _refusing(f"{file}: its tokenizer cannot be read"):
        AutoTokenizer.from_pretrained(**place).save_pretrained(target)
    with _refusing(f"{file}: its weights cannot be read"):
        read, loading = AutoModelForCausalLM.from_pretrained(
            **place,
            config=config,
            dtype="auto",
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
        )
        if absent := sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}):
            raise ModelError(
                f"{file} has no weights that fit {absent[0]}" + (f" and {len(absent) - 1} more" if absent[1:] else "")
            )
        with torch.device("meta"):  # what was read from blocks refuses to be saved
            plain = AutoModelForCausalLM.from_config(read.config, dtype=read.dtype)
        plain.load_state_dict(read.state_dict(), assign=True)
    with saving_tensors():
        plain.save_pretrained(target)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn whatever a stranger's file makes transformers raise into a sentence.

    Raises:
        ModelError: something was raised; a full disk stays what it is.
    """
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ModelError(f"{what}: {message_of(error)}") from error
