"""GGUF checkpoints become folders of floats: the right floats, once, whoever asks, or a sentence."""

import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from harness.core.errors import DiskError, HarnessError, ModelError
from harness.core.rounding import Rounding
from harness.model.source import locate
from tests.tiny_gguf import write_gguf

gguf = pytest.importorskip("gguf", reason="the reader is here where pip install '.[gguf]' has been")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "Tiny.Q4_1.gguf")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    yield
    leftovers = [path.name for path in (tmp_path / "cache").glob("models/.*") if path.name != ".locks"]
    assert leftovers == []


def of_q4_1(data: np.ndarray) -> np.ndarray:
    """By the format's definition: a scale and a least value in halves, then 16 bytes with two values each."""
    blocks = data.reshape(-1, 20)  # [values / 32, bytes]
    scale, least = blocks[:, :4].copy().view(np.float16).astype(np.float32).T[:, :, None]
    return (scale * np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1) + least).ravel()


def refusal(path: Path) -> str:
    with pytest.raises(HarnessError) as caught:
        locate(str(path))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_file_becomes_a_folder_with_its_weights_and_its_tokenizer(file: Path) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoTokenizer

    said: list[str] = []
    source = locate(str(file), say=said.append)
    assert (source.name, source.pretrained, source.loadable) == ("Tiny.Q4_1", str(file), str(source.folder))
    assert len(said) == 1
    stored = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(file).tensors}
    read = load_file(source.folder / "model.safetensors")
    expected = of_q4_1(stored["blk.1.ffn_up.weight"])
    assert np.array_equal(read["model.layers.1.mlp.up_proj.weight"].ravel(), expected)
    assert {weight.dtype for weight in read.values()} == {np.dtype(np.float32)}
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    assert tokenizer.decode(tokenizer("the <|endoftext|> thé")["input_ids"]) == "the <|endoftext|> thé"
    assert tokenizer.convert_ids_to_tokens(tokenizer("the<|endoftext|>")["input_ids"])[-1] == "<|endoftext|>"


def test_the_record_of_its_rounding(file: Path) -> None:
    rounding = locate(str(file)).rounding
    assert rounding is not None
    assert rounding.label == "dequantized from Q4_1"
    shares = {name: each.share for name, each in rounding.formats.items()}
    total = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32) + 259 * 32 + 5 * 32
    assert shares == {
        "Q4_1": 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32) / total,
        "Q8_0": 259 * 32 / total,
        "F32": 5 * 32 / total,
    }
    assert rounding.sentence == "its weights were rounded once (Q4_1 69%, Q8_0 31%, groups of 32)"
    assert Rounding.model_validate_json(rounding.model_dump_json()) == rounding


@pytest.mark.parametrize(
    ("formats", "sentence"),
    [
        ({"Q4_1": (0.999, 32), "F32": (0.001, 1)}, "(Q4_1, groups of 32)"),
        ({"Q4_K": (0.8, 256), "Q6_K": (0.2, 256)}, "(Q4_K 80%, Q6_K 20%, super-blocks of 256)"),
        (
            {"F16": (0.6, 1), "Q4_K": (0.3, 256), "Q5_0": (0.1, 32)},
            "(Q4_K 30%, Q5_0 10%, groups of 32 and super-blocks of 256)",
        ),
    ],
)
def test_a_rounding_in_words(formats: dict[str, tuple[float, int]], sentence: str) -> None:
    largest = max((name for name in formats if formats[name][1] > 1), key=lambda name: formats[name][0])
    described = {name: {"share": share, "group": group} for name, (share, group) in formats.items()}
    rounding = Rounding.model_validate({"format": largest, "formats": described})
    assert rounding.sentence == f"its weights were rounded once {sentence}"


def test_floats_are_not_rounded(tmp_path: Path) -> None:
    assert locate(str(write_gguf(tmp_path / "m.gguf", layers="F16", embeddings="F32"))).rounding is None


def test_a_copy_is_the_same_model_and_is_not_converted_again(file: Path, tmp_path: Path) -> None:
    first = locate(str(file))
    copy = Path(shutil.copy(file, tmp_path / "other name"))
    said: list[str] = []
    second = locate(str(copy), say=said.append)
    by_folder = locate(str(tmp_path), gguf_file="other name", say=said.append)
    assert (second.fingerprint, second.folder) == (first.fingerprint, first.folder)
    assert (by_folder.fingerprint, by_folder.folder) == (first.fingerprint, first.folder)
    assert said == []


def test_a_tokenizer_beside_it_makes_it_another_model(file: Path, tmp_path: Path) -> None:
    """Transformers prefers it to the file's own."""
    copy = Path(shutil.copy(file, tmp_path / "m.gguf"))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert locate(str(copy)).fingerprint != locate(str(file)).fingerprint


def test_who_comes_second_waits_for_the_first(file: Path) -> None:
    said: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        sources = list(pool.map(lambda _: locate(str(file), say=said.append), range(2)))
    assert sources[0] == sources[1]
    assert len(said) == 1


def test_a_file_that_ends_within_its_data_is_truncated(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for missing in (1, 1000, len(whole) // 2):
        path = tmp_path / "m.gguf"
        path.write_bytes(whole[:-missing])
        assert "is truncated" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "clip"}, "as a decoder of the architecture 'clip'"),
        ({"architecture": "t5"}, "as a decoder of the architecture 't5'"),
        ({"tokenizer": False}, "has no tokenizer"),
        ({"without": "blk.1.ffn_up.weight"}, "has no weights that fit model.layers.1.mlp.up_proj.weight"),
        ({"split": 3}, "is one of 3 parts"),
    ],
)
def test_what_transformers_cannot_read_is_refused(changes: dict[str, object], reason: str, tmp_path: Path) -> None:
    assert reason in refusal(write_gguf(tmp_path / "m.gguf", **changes))


@pytest.mark.parametrize("number", [4, 200, int(gguf.GGMLQuantizationType.Q8_K)])
def test_weights_of_an_unknown_format_are_refused(number: int, file: Path, tmp_path: Path) -> None:
    content = bytearray(file.read_bytes())
    where = content.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight") + 4 + 2 * 8  # its dimensions
    content[where : where + 4] = number.to_bytes(4, "little")
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    assert "has weights in the format" in refusal(path)


def described(content: bytes, name: str) -> int:
    """Where a tensor's dimensions are."""
    return content.index(name.encode()) + len(name) + 4


@pytest.mark.parametrize(
    ("name", "after", "value", "reason"),
    [
        ("blk.0.attn_q.weight", 0, (0).to_bytes(8, "little"), "blk.0.attn_q.weight has a dimension of 0"),
        ("blk.0.attn_k.weight", 20, bytes(8), "the data of .* overlap"),
        ("blk.0.attn_q.weight", 8, (64).to_bytes(8, "little"), "overlap"),
        ("llama.block_count", 0, (1).to_bytes(4, "little"), "holds 2 layers, and its llama.block_count is 1"),
        ("llama.block_count", 0, (2**31).to_bytes(4, "little"), "its llama.block_count is 2147483648"),
        ("llama.embedding_length", 0, (16).to_bytes(4, "little"), "has no weights that fit"),
    ],
)
def test_a_damaged_file_is_refused(
    name: str, after: int, value: bytes, reason: str, file: Path, tmp_path: Path
) -> None:
    content = bytearray(file.read_bytes())
    where = described(content, name) + after
    content[where : where + len(value)] = value
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    assert re.search(reason, refusal(path))


@pytest.mark.parametrize("lost", ["rounding.json", "config.json", "model.safetensors"])
def test_what_a_crash_left_is_made_again(lost: str, file: Path) -> None:
    folder = locate(str(file)).folder
    (folder / lost).write_bytes(b"")
    (folder.parent / f".{folder.name}.0123abcd").mkdir()  # by a process that was killed
    assert locate(str(file)).folder == folder
    assert (folder / lost).stat().st_size


def test_a_file_that_is_changed_while_it_is_read_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(file, tmp_path / "m.gguf"))
    monkeypatch.setattr("harness.model.gguf._convert", lambda *_: path.write_bytes(b"GGUF"))
    assert "was changed while it was read" in refusal(path)


@pytest.mark.parametrize("name", ["a" * 300, "~nobody-of-this-name/m"])
def test_a_path_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    assert "cannot be looked up" in refusal(Path(name))
    with pytest.raises(ModelError, match="cannot be looked up"):
        locate(str(tmp_path), gguf_file="a" * 300)


def test_a_short_name_has_no_other_file() -> None:
    for name in ("pocket", "smollm2-135m"):
        with pytest.raises(ModelError, match=f"{name} is a whole model: leave gguf_file out"):
            locate(name, gguf_file="m.gguf")


def test_without_the_reader_its_extra_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr("harness.model.gguf.find_spec", lambda name: None)
    assert "pip install 'efficiency-harness[gguf]'" in refusal(file)


def test_a_full_disk_is_told_beforehand(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.model.gguf.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(DiskError, match="GB left"):
        locate(str(file))


def test_a_disk_that_fills_while_weights_are_written_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError
    from transformers import PreTrainedModel

    def fill(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fill)
    with pytest.raises(DiskError, match="no space left while writing"):
        locate(str(file))


def test_an_absent_file_is_answered_with_the_near_one(file: Path) -> None:
    assert f"does not exist. Did you mean '{file}'?" in refusal(file.with_name("Tiny.Q4_0.gguf"))
    with pytest.raises(ModelError, match=r"gguf_file=Tiny.Q4_0.gguf: .* has no such file. Did you mean '.*Q4_1.gguf'"):
        locate(str(file.parent), gguf_file="Tiny.Q4_0.gguf")
    with pytest.raises(ModelError, match="is not a folder, of which that would be a file"):
        locate(str(file), gguf_file=file.name)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no GGUF")
    assert "is not a GGUF file" in refusal(tmp_path / "model.safetensors")
