"""Fixtures: a tiny model on disk, tiny tasks of every output type, the command line, real data."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.outcomes import Outcomes

# One thread: the machines that run this have few cores, and thread start-up outweighs tiny matrices.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("HARNESS_TEST_DATA", ROOT.parent / "shared"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """The device that jobs run on, and a file for the outcomes."""
    group = parser.getgroup("harness")
    group.addoption("--device", help="where the tests run their jobs: cpu (the default), cuda, cuda:0, ... or mps")
    group.addoption("--outcomes", help="a JSON file of names, outcomes and seconds, written after every test")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a device that is not here before anything is collected.

    Raises:
        UsageError: torch has no such device.
    """
    if (device := config.getoption("device")) not in (None, "cpu"):
        from harness.core.errors import HarnessError
        from harness.run.loading import require_device

        try:
            require_device(device)
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from None
    if (path := config.getoption("outcomes")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(Path(path)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files that start processes first, then those of many tests: no worker waits long for another at the end.

    What is of the CPU alone is skipped on another device; what is for a GPU is skipped where no device is named.
    """
    device = config.getoption("device")
    for item in items:
        if (mark := item.get_closest_marker("cpu")) and device not in (None, "cpu"):
            item.add_marker(pytest.mark.skip(reason=f"on a CPU alone: {mark.args[0]}"))
        if item.get_closest_marker("gpu") and device is None:
            item.add_marker(pytest.mark.skip(reason="for a GPU: give --device cuda; --device cpu tries what can be"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -tests[item.path]))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Where jobs run: ``--device``, else the CPU, also where there is a GPU."""
    return request.config.getoption("device") or "cpu"


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests, and the network; time nothing unless a test asks for it."""
    os.environ["HARNESS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HARNESS_MEASURE"] = "flops"
    yield
    del os.environ["HARNESS_CACHE"], os.environ["HARNESS_MEASURE"]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 4-layer Llama with its tokenizer, as a Hugging Face folder."""
    from harness.testing.tiny import tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


WORDS = """
the a red small old cat dog bird tree house sees likes finds eats near under big two green fish
""".split()  # noqa: SIM905 - read as a text


def _sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


@pytest.fixture(scope="session")
def tiny_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four lm-eval tasks over generated text, one of each output type, with a training split."""
    folder = tmp_path_factory.mktemp("tiny_tasks")
    rng = random.Random(0)
    for split, count in (("train", 12), ("test", 24)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for _ in range(count):
                document = {
                    "question": _sentence(rng, rng.randint(2, 9)),
                    "choices": [_sentence(rng, rng.randint(1, 3)) for _ in range(3)],
                    "letters": ["a", "b", "c"],
                    "answer": rng.randint(0, 2),
                    "text": _sentence(rng, rng.randint(20, 60)),
                }
                file.write(json.dumps(document) + "\n")
    common = f"""
dataset_path: json
dataset_kwargs:
  data_files:
    train: {folder}/train.jsonl
    test: {folder}/test.jsonl
training_split: train
test_split: test
fewshot_split: train
metadata: {{version: 1}}
"""
    tasks = {
        "tiny_choice": """
output_type: multiple_choice
doc_to_text: "{{question}} so"
doc_to_choice: choices
doc_to_target: answer
num_fewshot: 2
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
        "tiny_letters": """
output_type: multiple_choice
doc_to_text: "{{question}} is "
doc_to_choice: letters
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
        "tiny_last": """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
        "tiny_answer": """
output_type: generate_until
doc_to_text: "{{question}} ="
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e"], do_sample: false, max_gen_toks: 12}
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: word, filter: [{function: regex, regex_pattern: "([a-z]+)"}, {function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
        "tiny_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
""",
    }
    for name, text in tasks.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}{common}{text}")
    (folder / "tiny_group.yaml").write_text(
        "group: tiny_group\ntask: [tiny_choice, tiny_letters]\n"
        "aggregate_metric_list:\n  - {metric: acc, aggregation: mean, weight_by_size: true}\n"
    )
    return folder


@dataclass
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What a user reads who asked for the impossible: the last line of stderr, after progress."""
        assert self.code == 2, self
        assert "Traceback" not in self.err
        assert not self.out
        return self.err.rpartition("harness: ")[2].strip()

    def json(self) -> Any:
        """Standard output as strict JSON: JSON has no NaN."""
        assert self.code == 0, self.err
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


Harness = Callable[..., Done]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Harness]:
    """Call ``harness`` with these arguments in this process, in an empty folder: seconds cheaper than a process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*args: object) -> Done:
        from harness.cli import main

        monkeypatch.setattr(sys, "argv", ["harness", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return Done(exit_.value.code or 0, captured.out, captured.err)

    with patch.dict(os.environ):  # flags such as --offline speak to the libraries by variables
        yield call


@pytest.fixture
def tiny(tiny_folder: Path, tiny_tasks: Path, device: str) -> list[object]:
    """Arguments that name the tiny model and the tiny tasks."""
    return ["--pretrained", tiny_folder, "--include_path", tiny_tasks, "--device", device]


@pytest.fixture(scope="session")
def tiny_job(tiny_folder: Path, tiny_tasks: Path, device: str) -> Callable[..., Any]:
    """Makes a job on the tiny model and the tiny tasks; what is given is what a test is about."""
    from harness.run.spec import Job

    return partial(Job, pretrained=str(tiny_folder), include_path=str(tiny_tasks), device=device)


COMMANDS = """
import contextlib, io, json, sys
from harness.cli import main

done = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["harness", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as exit_:
            done.append([exit_.code or 0, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""

Machine = Callable[..., list[Done]]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Call ``harness`` with each of these lists of arguments, in one process with an environment of its own.

    The libraries read the places of their caches, and whether there is a network, once, when they are imported.
    """

    def run(*commands: Sequence[object], **env: str) -> list[Done]:
        argument = json.dumps([[str(word) for word in command] for command in commands])
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100", **env}
        command = [sys.executable, "-c", COMMANDS, argument]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [Done(*each) for each in json.loads(done.stdout.splitlines()[-1])]

    return run


@pytest.fixture
def no_survey(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare lm-eval its survey of the machine (pip list, lscpu, ...) after an evaluation of its own: a second each."""
    from lm_eval import evaluator

    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the prepared hub cache: data sets write lock files beside their data."""
    import shutil

    source = SHARED / "hub"
    if not source.is_dir():
        pytest.skip(f"no prepared hub cache at {source}; see CONTRIBUTING.md, 'Tests on real data'")
    folder = tmp_path_factory.mktemp("hub") / "hub"
    shutil.copytree(source, folder)
    return folder


@pytest.fixture(scope="session")
def stories() -> Path:
    """A small real pretrained Llama."""
    folder = SHARED / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}; see CONTRIBUTING.md, 'Tests on real data'")
    return folder
