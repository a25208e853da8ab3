"""What cannot be done is refused in one sentence that says what was wrong, with exit code 2 and no traceback."""

import errno
import io
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import Job
from tests.conftest import Harness
from tests.silent import Silent

Refused = Callable[..., str]


@pytest.fixture
def refused(harness: Harness, tiny: list[object]) -> Refused:
    """The sentence for ``harness run`` on the tiny model with these arguments besides."""

    def sentence(*args: object, task: str = "tiny_choice") -> str:
        return harness("run", *tiny, "--tasks", task, "--no_baseline", *args).sentence

    return sentence


@pytest.fixture
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.run.session.evaluate", lambda *_: pytest.fail("evaluated before it was refused"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--method layer-drip", "unknown method 'layer-drip'. Did you mean 'layer-drop' or 'layer-skip'?"),
        ("--method layer-drop:cuont=1", "unknown argument of layer-drop 'cuont'. Did you mean 'count'"),
        ("--method layer-drop:count=-1", "greater than or equal to 0"),
        ("--method layer-drop:unit=half", "unit='half'"),
        ("--method layer-drop:count", "key=value"),
        ("--method layer-drop:count=9", "from 0 to 3 can be dropped"),
        ("--method layer-drop:layers=9", "no layer 9"),
        ("--method dense+layer-drop", "dense cannot be stacked"),
        ("--method ./absent.py:Mine", "no such file"),
        ("--method_args count=1", "needs exactly one method"),
        ("--model vllm", "--model hf"),
        ("--model_args peft=x", "not supported"),
        ("--model_args colour=red", "colour"),
        ("--model_args dtype=float33", "float33"),
        ("--model_args max_length=long", "max_length"),
        ("--pretrained other --model_args pretrained=this", "give one"),
        ("--device tpu", "--device tpu"),
        ("--batch_size auto", "whole number"),
        ("--limit 0", "limit"),
        ("--limit 2 --samples {}", "exclude each other"),
        ('--samples {"tiny_choice":[24]}', "0 to 23"),
        ('--samples {"tiny_choice":[]}', "--samples"),
        ('--samples {"tiny_choise":[1]}', "Did you mean 'tiny_choice'"),
        ("--seed many", "--seed many"),
        ("--verbosity LOUD", "LOUD"),
        ("--fewshot_as_multiturn maybe", "true or false"),
        ("--apply_chat_template", "no chat template"),
        ("--calibration absent.txt --method layer-drop:count=1", "absent.txt"),
        ("--include_path absent", "no such folder"),
        ("--config absent.yaml", "absent.yaml"),
        ("--config quoted.yaml", "no_baseline: expected true or false, got 'false'"),
        ("--config dated.yaml", "unknown model argument 'made'"),
        ("--pretrained=", "expected a model's name or folder, got nothing"),
        ('--model_args {"pretrained":""}', "differ: give one"),
        ("--batch_size ²", "--batch_size ²: expected a whole number"),
        ('--samples {"tiny_choice":[true]}', "needs a list of document indices, got [True]"),
        ("--price inf", "--price inf: expected US dollars for an hour, above 0"),
        ("--price 0", "--price 0: expected"),
        ("--carbon_intensity inf", "--carbon_intensity inf: expected a finite number"),
        ("--cost_budget inf", "expected a number of seconds above 0"),
        ("--model_args max_length=true", "max_length=True is not valid: expected a whole number from 1"),
        ("--model_args max_length=0", "max_length=0 is not valid"),
        ("--model_args prefix_token_id=x", "prefix_token_id='x' is not valid: expected a whole number from 0"),
        ("--model_args prefix_token_id=-1", "prefix_token_id=-1"),
        ("--model_args add_bos_token=maybe", "add_bos_token='maybe' is not valid: expected true or false"),
        ("--model_args tokenizer=5", "tokenizer=5 is not valid: expected a name or a folder"),
        ("--model_args tokenizer=no_tokenizer", "the tokenizer of 'no_tokenizer' is missing"),
    ],
)
def test_wrong_setting(arguments: str, sentence: str, refused: Refused, no_evaluation: None) -> None:
    Path("no_tokenizer").mkdir()
    Path("no_tokenizer/config.json").write_text("{}")
    Path("quoted.yaml").write_text("no_baseline: 'false'\n")
    Path("dated.yaml").write_text("model_args: {made: 2020-01-01}\n")
    assert sentence in refused(*arguments.split(" "))


def test_unknown_task(harness: Harness, tiny: list[object]) -> None:
    assert "Did you mean 'tiny_choice'" in harness("run", *tiny, "--task", "tiny_choise").sentence
    assert "which task?" in harness("run", *tiny).sentence


def test_unknown_flag(harness: Harness) -> None:
    done = harness("run", "--colour", "red")
    assert done.code == 2
    assert "--colour" in done.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--model_args max_length=2", "longer than the model allows"),
        ("--gen_kwargs max_gen_toks=300", "300 new tokens (max_gen_toks), and the model takes 256"),
        ("--gen_kwargs temprature=1", "temprature"),
        ("--gen_kwargs temperature=hot", "hot"),
        ("--gen_kwargs num_beams=2", "num_beams=2"),
    ],
)
def test_request_that_the_model_cannot_serve(arguments: str, sentence: str, refused: Refused) -> None:
    task = "tiny_answer" if "gen" in arguments else "tiny_choice"
    assert sentence in refused(*arguments.split(" "), task=task)


# ---- models ----------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture
def load(harness: Harness, model: Path, tiny_tasks: Path, device: str) -> Callable[[], str]:
    arguments = ("--pretrained", model, "--include_path", tiny_tasks, "--tasks", "tiny_letters", "--device", device)
    return lambda: harness("run", *arguments).sentence


def test_model_path_that_is_not_there(refused: Refused, tiny_folder: Path) -> None:
    absent = tiny_folder.with_name("tiny-lama")
    assert f"Did you mean {str(tiny_folder)!r}?" in refused("--pretrained", absent)


def test_folder_without_a_model(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "without a config.json" in refused("--pretrained", tmp_path / "empty")


def test_truncated_weights(load: Callable[[], str], model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "cannot be loaded" in load()


@pytest.mark.parametrize("change", ["absent", "another shape"])
def test_weights_that_would_be_made_up(change: str, load: Callable[[], str], model: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    del weights[name]
    if change == "another shape":
        weights[name] = torch.zeros(3, 3)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert f"no weights that fit {name}" in load()


def test_broken_configuration(load: Callable[[], str], model: Path) -> None:
    (model / "config.json").write_text("{")
    assert "not a valid JSON" in load()


def test_missing_tokenizer(load: Callable[[], str], model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer of" in load()


@pytest.mark.parametrize("family", ["encoder-decoder", "branches that add the stream"])
def test_architecture_without_a_known_layout(family: str, load: Callable[[], str], model: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM, T5Config, T5ForConditionalGeneration

    if family == "encoder-decoder":
        other = T5ForConditionalGeneration(
            T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        )
    else:
        other = BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2))
    other.save_pretrained(model)
    assert type(other).__name__ in load()


# ---- data ------------------------------------------------------------------------------------------------------


def test_data_set_that_is_not_here(refused: Refused, empty_caches: Path) -> None:
    sentence = refused("--offline", task="arc_easy")
    for expected in ("allenai/ai2_arc", str(empty_caches), "harness fetch arc_easy"):
        assert expected in sentence


def test_task_whose_file_is_broken(refused: Refused, tiny_tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("task: broken\noutput_type: [\n")
    assert "broken" in refused(task="broken.yaml")


# ---- results ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tiny_job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results with one finished run: two documents of tiny_letters."""
    folder = tmp_path_factory.mktemp("finished")
    job = tiny_job(
        methods=("dense",),
        tasks=("tiny_letters",),
        limit=2,
    )
    Session(job, Store(folder), Silent()).execute()
    return folder


@pytest.fixture
def finished(runs: Path, tmp_path: Path) -> Path:
    """The folder of the finished run, in a copy to spoil."""
    shutil.copytree(runs, tmp_path / "runs")
    (folder,) = Store(tmp_path / "runs").folders()
    return folder.path.relative_to(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": 1}', b"\x00\xff\xfe", b'{"schema_version": 2}'])
def test_record_that_is_none(content: bytes, harness: Harness, tiny: list[object], finished: Path) -> None:
    (finished / "record.json").write_bytes(content)
    again = harness("run", *tiny, "--tasks", "tiny_letters", "--limit", 2)
    assert "record.json is not a run record" in again.sentence
    assert "is not a run record" in harness("show", finished).sentence


@pytest.mark.parametrize("content", ["", "{", "{}\n", "[]\n", '{"task": "other", "doc_id": 0}\n'])
def test_samples_that_are_none(content: str, harness: Harness, tiny: list[object], finished: Path) -> None:
    (finished / "samples.jsonl").write_text(content)
    method = ("--method", "layer-drop:layers=1")
    sentence = harness("run", *tiny, "--tasks", "tiny_letters", "--limit", 2, *method).sentence
    assert str(finished) in sentence


def test_journal_of_another_program_is_started_anew(harness: Harness, tiny: list[object], finished: Path) -> None:
    (finished / "record.json").unlink()
    (finished / "journal.jsonl").write_text('{"hello": 1}\n[{"requests": []}]\nnot json\n')
    assert harness("run", *tiny, "--tasks", "tiny_letters", "--limit", 2).code == 0
    assert [folder.path for folder in Store(Path("runs")).folders() if folder.finished] == [finished]


@pytest.mark.parametrize("command", [["show", "absent"], ["show", ""], ["show", "."]])
def test_show_what_is_not_there(command: list[str], harness: Harness) -> None:
    assert harness(*command).sentence


def test_output_path_is_a_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "cannot write" in refused("-o", "file", task="tiny_letters")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_path_is_read_only(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot write" in refused("-o", "locked/runs", task="tiny_letters")


class Full(io.FileIO):
    """A file on a disk that has room for three more lines."""

    room = 3

    def write(self, data: object) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= 1
        return super().write(data)


def _open(path: Path, mode: str = "r", **options: object) -> object:
    if path.name == "journal.jsonl" and mode != "rb":
        return io.TextIOWrapper(io.BufferedWriter(Full(path, "w+")), encoding="utf-8")
    return open(path, mode, **options)  # noqa: PTH123 - Path.open is this function


@pytest.mark.parametrize("moment", ["journal", "results"])
def test_full_disk(moment: str, refused: Refused, harness: Harness, tiny: list[object]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if moment == "journal":
            patch.setattr(Path, "open", _open)
        else:
            patch.setattr(
                "harness.core.files.os.fsync", lambda _: _raise(OSError(errno.ENOSPC, "No space left on device"))
            )
        sentence = refused(task="tiny_letters")
    assert "no space left while writing" in sentence
    assert "kept" in sentence
    (folder,) = Store(Path("runs")).folders()
    assert not folder.finished
    assert sorted(path.name for path in folder.path.iterdir()) == ["journal.jsonl", "journal.jsonl.lock"]
    kept = len(folder.journal(0).read_text().splitlines())
    assert kept == (3 if moment == "journal" else 24)
    assert harness("run", *tiny, "--tasks", "tiny_letters", "--no_baseline").code == 0


def _raise(error: Exception) -> None:
    raise error


@contextmanager
def files_that_may_not_grow(beyond: int) -> Iterator[None]:
    """Have the operating system refuse this process files of more bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (beyond, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_file_that_may_not_grow(refused: Refused, harness: Harness, tiny: list[object]) -> None:
    """The operating system itself refuses the write, also the one at close."""
    with files_that_may_not_grow(beyond=9000):
        sentence = refused(task="tiny_letters")
    assert "cannot write" in sentence
    assert harness("run", *tiny, "--tasks", "tiny_letters", "--no_baseline").code == 0
    (folder,) = Store(Path("runs")).folders()
    assert len({json.dumps(line) for line in folder.samples()}) == 24
