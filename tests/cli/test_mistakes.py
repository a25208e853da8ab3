"""What a user can get wrong with a model, a tokenizer or a task is said in a sentence before anything is prepared."""

import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harness.cli.arguments import key_values
from harness.contract.prepared import Prepared
from harness.core.errors import HarnessError
from harness.evaluate import preflight
from harness.evaluate.lm import HarnessLM
from harness.evaluate.tasks import Overrides, TaskLoader
from harness.results.store import Store
from harness.run import loading
from harness.run.spec import Job, ModelSettings
from harness.testing.tiny import POSITIONS, tiny_model, tiny_tokenizer
from tests.conftest import Harness
from tests.silent import Silent

Refused = Callable[..., str]

HEAD = """
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
"""
METRIC = "metric_list:\n  - {metric: METRIC, aggregation: mean, higher_is_better: true}\n"
WRITES = "output_type: generate_until\n" + METRIC.replace("METRIC", "exact_match")
SHORT = "generation_kwargs: {until: [zz], max_gen_toks: 4}\n"
SCORES = "output_type: loglikelihood\n" + METRIC.replace("METRIC", "acc")
ROLLS = "output_type: loglikelihood_rolling\nmetric_list:\n  - {metric: bits_per_byte}\n"
TASKS = {
    "writes": WRITES + SHORT,
    "scores": SCORES,
    "chooses": "output_type: multiple_choice\ndoc_to_choice: [' x', ' y']\ndoc_to_target: 0\n",
    "rolls": ROLLS,
    "shows": SCORES + "fewshot_split: train\nnum_fewshot: 2\n",
    "shows_its_own": SCORES + "fewshot_split: test\nnum_fewshot: 2\n",
    "shows_first": SCORES + "fewshot_split: train\nfewshot_config: {sampler: first_n}\nnum_fewshot: 2\n",
    "shows_too_many": SCORES + "fewshot_split: train\nnum_fewshot: 5\n",
    "learns": SCORES + "training_split: train\n",
    "writes_long": WRITES + "generation_kwargs: {until: [zz], max_gen_toks: 300}\n",
    "writes_as_lm_eval_does": WRITES,
    "writes_with_a_typo": WRITES + "generation_kwargs: {until: [zz], max_gen_toks: 4, temprature: 1}\n",
    "writes_in_beams": WRITES + "generation_kwargs: {until: [zz], max_gen_toks: 4, num_beams: many}\n",
    "executes": SCORES + "unsafe_code: true\n",
    "answers_nothing": SCORES + "target_delimiter: ''\ndoc_to_target: ''\n",
    "rolls_nothing": f"{ROLLS}doc_to_target: ''\n",
    "sees": SCORES + "doc_to_image: [q]\n",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    documents = {
        "train": [{"q": f"a new house {number}", "a": " x"} for number in range(3)],
        "test": [{"q": f"the cat {number}", "a": " x"} for number in range(4)],
    }
    for split, lines in documents.items():
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for name, text in TASKS.items():
        lines = {line.partition(":")[0] for line in text.splitlines()}
        head = "".join(
            f"{line}\n"
            for line in HEAD.format(folder=folder).splitlines()
            if line.partition(":")[0] not in lines or not line
        )
        (folder / f"{name}.yaml").write_text(f"task: {name}{head}{text}")
    return folder


def _grown(token: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([token])
    return tokenizer


def _without(*names: str) -> Any:
    tokenizer = tiny_tokenizer()
    for name in names:
        setattr(tokenizer, name, None)
    return tokenizer


def _padded() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<filling>"})
    return tokenizer


def _begun() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    return tokenizer


def _counting(length: Any) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = length
    return tokenizer


def _template(text: Any) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = text
    return tokenizer


_TURNS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "plain": tiny_tokenizer,
    "knows 'cat'": lambda: _grown("cat"),
    "knows 'new'": lambda: _grown("new"),
    "knows ' x'": lambda: _grown(" x"),
    "knows 'zebra'": lambda: _grown("zebra"),
    "no end": lambda: _without("eos_token"),
    "no begin": lambda: _without("bos_token"),
    "neither": lambda: _without("eos_token", "bos_token"),
    "padding beyond": _padded,
    "begin beyond": _begun,
    "turns": lambda: _template(_TURNS),
    "never": lambda: _template("{{ raise_exception('I render nothing') }}"),
    "alternates": lambda: _template(
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
    ),
    "one turn": lambda: _template(
        "{% if messages | length > 1 %}{{ raise_exception('one message alone') }}{% endif %}" + _TURNS
    ),
    "undefined": lambda: _template("{{ messages[0].of.nothing }}"),
    "divides": lambda: _template("{{ 1 // 0 }}"),
    "counts in words": lambda: _counting("many"),
    "half a character": lambda: _template(_TURNS + r"{{ '\ud800' }}"),
    "two templates": lambda: _template({"a": _TURNS, "b": _TURNS}),
    "no template": lambda: _template("{% for m in messages %}"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder of a tiny model of a family with a tokenizer; the weights of a family are written once."""
    root = tmp_path_factory.mktemp("models")

    def folder(tokenizer: str = "plain", family: str = "llama") -> Path:
        base = root / family
        if not base.exists():
            tiny_model(family, layers=2).save_pretrained(base)
        path = root / f"{family} {list(TOKENIZERS).index(tokenizer)}"
        if not path.exists():
            shutil.copytree(base, path)
            TOKENIZERS[tokenizer]().save_pretrained(path)
        return path

    return folder


@pytest.fixture
def run(harness: Harness, models: Callable[..., Path], tasks: Path, device: str) -> Callable[..., Any]:
    def run(tokenizer: str, task: str, *arguments: object, family: str = "llama") -> Any:
        model = ("--pretrained", models(tokenizer, family), "--device", device, "--model_args", "dtype=float32")
        return harness("run", *model, "--include_path", tasks, "--task", task, *arguments)

    return run


@pytest.fixture
def refused(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """The sentence for a run that is refused before anything is prepared or evaluated."""
    monkeypatch.setattr("harness.run.session.evaluate", lambda *_: pytest.fail("evaluated before it was refused"))
    monkeypatch.setattr(
        "harness.contract.preparation.Preparation.state", lambda *_: pytest.fail("prepared before it was refused")
    )
    return lambda *arguments, **options: run(*arguments, **options).sentence


@pytest.fixture(scope="module")
def lms(models: Callable[..., Path], device: str) -> Callable[..., HarnessLM]:
    """A tiny model as an evaluation has it, loaded once for each of these."""

    @cache
    def load(tokenizer: str, family: str, batch_size: int, args: str, template: bool) -> HarnessLM:
        settings = ModelSettings(
            pretrained=str(models(tokenizer, family)),
            model_args=key_values("--model_args", [args]),
            device=device,
            batch_size=batch_size,
            apply_chat_template=template,
        )
        return loading.load(settings, loading.source_of(settings), device, Silent())

    return load


@pytest.fixture(scope="module")
def checked(lms: Callable[..., HarnessLM], tasks: Path) -> Callable[..., str]:
    """What a check of a task's requests says."""
    loader = TaskLoader(str(tasks))

    def check(
        tokenizer: str, task: str, family: str = "llama", batch: int = 1, args: str = "", gen: str = "", **settings: Any
    ) -> str:
        job = Job(methods=("dense",), tasks=(task,), pretrained="any", batch_size=batch, **settings)
        loaded = loader.load(task, Overrides(job.num_fewshot, key_values("--gen_kwargs", [gen])))
        with pytest.raises(HarnessError) as refusal:
            preflight.check(lms(tokenizer, family, batch, args, job.apply_chat_template), loaded, job)
        return str(refusal.value)

    return check


@pytest.mark.parametrize(
    ("tokenizer", "task", "arguments", "expected"),
    [
        ("knows 'cat'", "writes", {}, "document 0: the tokenizer gives 'cat' as token 259"),
        ("knows 'cat'", "scores", {}, "embedding has 259 rows, for tokens up to 258"),
        ("knows 'cat'", "chooses", {}, "'cat'"),
        ("knows ' x'", "chooses", {}, "as token 259"),
        ("knows ' x'", "rolls", {}, "as token 259"),
        ("knows 'new'", "shows", {}, "'new'"),
        ("padding beyond", "writes", {"batch": 2}, "the padding of a batch"),
        ("begin beyond", "rolls", {}, "'<begin>'"),
        ("no end", "writes", {}, "no end token: name an eos_token"),
        ("neither", "writes", {}, "no end token"),
        ("neither", "scores", {}, "--model_args prefix_token_id=NUMBER"),
        ("neither", "chooses", {}, "neither a begin nor an end token"),
        ("neither", "rolls", {}, "neither a begin nor an end token"),
    ],
)
def test_tokenizer_that_does_not_fit(
    tokenizer: str, task: str, arguments: dict[str, Any], expected: str, checked: Refused
) -> None:
    assert expected in checked(tokenizer, task, **arguments)


@pytest.mark.parametrize("task", ["writes", "scores", "chooses", "rolls"])
def test_tokenizer_that_cannot_encode(task: str, checked: Refused) -> None:
    sentence = checked("counts in words", task)
    assert f"{task}: the tokenizer cannot encode document 0: TypeError: " in sentence


def test_template_with_half_a_character(checked: Refused) -> None:
    assert "the tokenizer cannot encode document 0: " in checked("half a character", "writes", apply_chat_template=True)


def test_calibration_text_that_the_model_cannot_read(refused: Refused) -> None:
    sentence = refused("knows 'new'", "learns", "--method", "layer-drop:count=1")
    assert "the calibration text from the training split of learns: the tokenizer gives 'new'" in sentence


@pytest.mark.parametrize(
    ("tokenizer", "task", "arguments"),
    [
        ("knows 'zebra'", "writes", ""),  # some published tokenizers have tokens that their models lack
        ("no end", "scores", ""),
        ("no begin", "scores", ""),
        ("no begin", "rolls", ""),
        ("no begin", "writes", ""),
        ("padding beyond", "writes", ""),
        ("padding beyond", "scores", "--batch_size 2"),
        ("neither", "scores", "--model_args prefix_token_id=1"),
        ("turns", "writes", "--apply_chat_template --system_instruction Answer."),
        ("alternates", "shows", "--apply_chat_template"),
        ("one turn", "shows", "--apply_chat_template --fewshot_as_multiturn false"),
    ],
)
def test_what_can_be_served_is(tokenizer: str, task: str, arguments: str, run: Callable[..., Any]) -> None:
    done = run(tokenizer, task, "--limit", 2, *arguments.split())
    assert done.code == 0, done.err
    assert ("tokens from 259 on have no row in the model's embedding" in " ".join(done.err.split())) is (
        tokenizer in ("knows 'zebra'", "padding beyond")
    )


@pytest.mark.parametrize(
    ("tokenizer", "task", "arguments", "expected"),
    [
        ("never", "writes", {}, "I render nothing; run without --apply_chat_template"),
        ("never", "scores", {}, "a conversation of user: "),
        ("one turn", "shows", {}, "user, assistant, user, assistant, user: TemplateError: one message alone"),
        ("one turn", "shows", {}, "give --fewshot_as_multiturn false, or run without"),
        ("undefined", "scores", {"system_instruction": "Answer."}, "leave --system_instruction out"),
        ("divides", "scores", {}, "ZeroDivisionError"),
        ("no template", "scores", {}, "TemplateSyntaxError"),
    ],
)
def test_chat_template_that_refuses(
    tokenizer: str, task: str, arguments: dict[str, Any], expected: str, checked: Refused
) -> None:
    sentence = checked(tokenizer, task, apply_chat_template=True, **arguments)
    assert expected in sentence
    assert "the model's chat template" in sentence


def test_templates_without_a_default(checked: Refused) -> None:
    sentence = checked("two templates", "writes", apply_chat_template=True)
    assert "several chat templates, and none is the default: name one of " in sentence


@pytest.mark.parametrize(
    ("task", "arguments", "expected"),
    [
        ("writes", {"gen": "until=5,foo=bar"}, "unknown generation argument of writes 'foo'"),
        ("writes", {"gen": "until=5"}, "until=5: expected a text or a list of texts"),
        ("writes", {"gen": '{"until":["a",null]}'}, "expected a text or a list of texts"),
        ("writes", {"gen": "nonsense=3"}, "'nonsense'"),
        ("writes", {"gen": "temprature=1"}, "Did you mean 'temperature'?"),
        ("writes", {"gen": "max_gen_tok=1"}, "Did you mean 'max_gen_toks'"),
        ("writes", {"gen": "temperature=hot"}, "hot"),
        ("writes", {"gen": "do_sample=true,temperature=1,top_p=much"}, "much"),
        ("writes", {"gen": "do_sample=true,temperature=1,top_k=-3"}, "top_k"),
        ("writes", {"gen": "repetition_penalty=0"}, "repetition_penalty"),
        ("writes", {"gen": "use_cache=false"}, "lm-eval sets it itself"),
        ("writes", {"gen": "pad_token_id=1"}, "lm-eval sets it itself"),
        ("writes", {"gen": "max_gen_toks=0"}, "expected at least 1"),
        ("writes", {"gen": "max_gen_toks=-4"}, "expected at least 1"),
        ("writes", {"gen": "max_gen_toks=many"}, "many"),
        ("writes", {"gen": "max_length=2"}, "max_length"),
        ("writes", {"gen": "max_gen_toks=256"}, f"give --gen_kwargs max_gen_toks={POSITIONS - 9}"),
        ("writes", {"args": "max_length=5", "gen": "max_gen_toks=5"}, "give --gen_kwargs max_gen_toks=2"),
        ("writes_long", {}, "writes_long asks for up to 300 new tokens (max_gen_toks), and the model takes 256"),
        ("writes_as_lm_eval_does", {}, "asks for up to 256 new tokens"),
        ("writes_with_a_typo", {}, "unknown generation argument of writes_with_a_typo 'temprature'"),
        ("writes_in_beams", {}, "num_beams=many: only one continuation"),
        ("writes", {"gen": "num_beams=2"}, "give --gen_kwargs num_beams=1"),
        ("writes", {"gen": "do_sample=true,temperature=1,num_return_sequences=2"}, "only one continuation"),
        ("scores", {"args": "max_length=1"}, "longer than the model allows (max_length=1)"),
        ("answers_nothing", {}, "document 0 has an answer that gives the model no token"),
        ("executes", {}, "give --confirm_run_unsafe_code"),
        ("rolls_nothing", {}, "document 0 has a text that gives the model no token"),
        ("sees", {}, "only text models"),
    ],
)
def test_request_that_cannot_be_served(task: str, arguments: dict[str, Any], expected: str, checked: Refused) -> None:
    assert expected in checked("plain", task, **arguments)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@pytest.mark.parametrize(
    ("task", "arguments", "expected"),
    [
        ("scores", {"args": "max_length=257"}, "give --model_args max_length=256 or less"),
        ("writes", {"args": "max_length=4096"}, "the 256 positions that the model has learned"),
        ("writes", {"gen": "max_length=300"}, "give max_gen_toks in its place"),
    ],
)
def test_more_than_the_learned_positions(
    family: str, task: str, arguments: dict[str, Any], expected: str, checked: Refused
) -> None:
    assert expected in checked("plain", task, family, **arguments)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_all_positions_can_be_used(family: str, run: Callable[..., Any]) -> None:
    longer = 4 * POSITIONS if family == "llama" else POSITIONS  # rotary positions have no end
    done = run("plain", "rolls", "--limit", 1, "--model_args", f"max_length={longer}", family=family)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("task", "arguments", "expected"),
    [
        ("shows", "--num_fewshot 50", "give --num_fewshot 3 or less"),
        ("shows", "--num_fewshot 4", "which are 3; give --num_fewshot 3"),
        ("shows_first", "--num_fewshot 4", "give --num_fewshot 3 or less"),
        ("shows_its_own", "--num_fewshot 4", "which are 3, the question itself left out; give --num_fewshot 3"),
        ("shows_too_many", "", "shows_too_many: 5 examples in the prompt (num_fewshot)"),
        ("scores", "--num_fewshot 50", "more than the documents that they can be taken from"),
    ],
)
def test_more_shots_than_documents(task: str, arguments: str, expected: str, refused: Refused) -> None:
    assert expected in refused("plain", task, "--dry_run", *arguments.split())


@pytest.mark.parametrize("task", ["shows", "shows_first", "shows_its_own"])
def test_as_many_shots_as_documents(task: str, run: Callable[..., Any]) -> None:
    assert run("plain", task, "--num_fewshot", 3, "--limit", 1).code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("dtype=float33", "unknown dtype 'float33'. Did you mean 'float32'"),
        ("dtype=fp16", "float16, half"),
        ("dtype=int8", "--model_args dtype takes: auto, float32"),
        ("load_in_8bit=True", "quantization is a method here"),
        ("load_in_4bit=True", "--method int8-dynamic"),
        ("device=cpu", "give --device"),
        ("batch_size=4", "give --batch_size"),
        ("atn_implementation=sdpa", "unknown model argument 'atn_implementation'"),
        ("prefix_tokens_id=1", "Did you mean 'prefix_token_id'"),
    ],
)
def test_model_argument_that_is_none(arguments: str, expected: str, refused: Refused) -> None:
    assert expected in refused("plain", "scores", "--model_args", arguments)


@pytest.mark.parametrize(
    "stack",
    [
        "layer-drop:count=1+dr-llm",
        "layer-drop:layers=1+random-skip",
        "static-path+layer-drop:unit=mlp,count=1",
        "dr-llm+calm",
        "mue+polar",
        "calm+wanda",
        "layer-drop:unit=attention,count=1+mue",
        "layer-drop:count=1+layer-drop:unit=mlp,count=1",
        "wanda+block-sparse",
        "int8-dynamic+magnitude",
        "block-sparse+int8-dynamic",
        "streaming+kv-evict",
        "window-attention+streaming",
        "random-skip+kv-evict",
        "kv-evict+calm",
        "window-attention+mue",
    ],
)
def test_stack_that_cannot_be(stack: str, refused: Refused) -> None:
    sentence = refused("plain", "scores", "--method", stack, "--dry_run")
    assert all(part.partition(":")[0] in sentence for part in stack.split("+"))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("layer-drop", "layer-drop: count=4 with unit=block is out of range for this model; from 0 to 1"),
        ("layer-drop:layers=1+layer-drop:layers=1", "layer 1 is already out of the model"),
        ("layer-drop:layers=7", "there is no layer 7"),
        ("random-skip:first=2", "random-skip: executed=0.75 is out of range"),
        ("calm", "every=4 and start=0 leave no layer to check in a model of 2"),
        ("static-path", "skip=3 is out of range"),
        ("wanda:layers=0/5", "there is no layer 5"),
        ("window-attention:layers=1/5", "layer 5 is none that reads all keys; these do: 0, 1"),
        ("dr-llm:state=empty", "prepared state in empty cannot be read"),
        ("polar:state=broken", "prepared state in broken cannot be read"),
        ("polar:state=of_another", "was made for another name (dr-llm, not polar)"),
    ],
)
def test_method_that_this_model_cannot_have(method: str, expected: str, refused: Refused) -> None:
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/state.json").write_text("{")
    Prepared().save(Path("of_another"), {"name": "dr-llm"})
    assert expected in refused("plain", "scores", "--method", method, "--method", "layer-drop:count=1", "--dry_run")


def test_calibration_of_nothing(refused: Refused) -> None:
    Path("nothing.txt").write_text("\n")
    sentence = refused("plain", "scores", "--method", "layer-drop:count=1", "--calibration", "nothing.txt")
    assert "the calibration text from the file nothing.txt is empty" in sentence


def test_folder_named_in_another_script(
    models: Callable[..., Path], harness: Harness, tasks: Path, device: str
) -> None:
    model = shutil.copytree(models(), Path("модель"))
    done = harness("run", "--pretrained", model, "--include_path", tasks, "--task", "scores", "--device", device)
    assert done.code == 0, done.err
    (folder,) = Store(Path("runs")).folders()
    assert re.fullmatch(f"dense_[0-9a-f]{{8}}_scores_{folder.record().id}", folder.path.name)
