"""The bundled model: small, plain, loads offline, reads and writes any text."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

import harness.tasks
from harness.tasks.pocket import arithmetic, choice, recall, text
from harness.tasks.pocket.splits import Split, documents

FOLDER = Path(next(iter(harness.tasks.__path__))) / "pocket" / "model"


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto").eval()


def test_it_is_small_enough_for_a_repository():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6
    assert not list(FOLDER.glob("*.bin")) + list(FOLDER.glob("*.pt")) + list(FOLDER.glob("*.py"))


def test_it_computes_in_float32_what_its_file_holds_in_bfloat16(model):
    assert model.dtype == torch.float32
    assert all(torch.equal(weight, weight.bfloat16()) for weight in model.parameters())


def test_it_is_a_deep_llama_with_grouped_queries(model):
    config = model.config
    assert type(model).__name__ == "LlamaForCausalLM"
    assert config.num_hidden_layers >= 12
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.max_position_embeddings >= 1024


@pytest.mark.parametrize(
    "content",
    [
        "Mia has 12 shells.",
        "naïve café — 東京 🙂",
        "\t tabs,  double  spaces \n\n\r\n",
        "x = {'a': [1, 2]}; # §",
        "don't",
    ],
)
def test_any_text_comes_back_from_the_tokenizer(content, tokenizer):
    ids = tokenizer(content).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == content
    assert tokenizer.decode(tokenizer(content, add_special_tokens=False).input_ids) == content


def test_every_byte_is_a_token_and_every_digit_stands_alone(tokenizer):
    vocabulary = json.loads((FOLDER / "tokenizer.json").read_text())["model"]["vocab"]
    assert sum(len(token) == 1 for token in vocabulary) == 256
    assert tokenizer.tokenize("2047") == ["2", "0", "4", "7"]


def test_the_bundled_tokenizer_is_the_one_that_training_makes():
    from harness.tasks.pocket import tokenizer as made

    assert json.loads(made.train().to_str()) == json.loads((FOLDER / "tokenizer.json").read_text())


@pytest.mark.parametrize("level", recall.LEVELS)
def test_recall_levels_are_as_long_as_they_say(level, tokenizer):
    stream = islice(documents(recall.make, [level], Split.TEST, "length"), 40)
    lengths = [len(tokenizer(one.prompt + one.target).input_ids) for one in stream]
    assert max(lengths) <= recall.length(level)
    assert min(lengths) >= 0.85 * recall.length(level)


@pytest.mark.parametrize("kind", [arithmetic, choice, text], ids=lambda kind: kind.__name__.split(".")[-1])
def test_the_words_of_the_tasks_are_single_tokens(kind, tokenizer):
    for one in islice(documents(kind.make, kind.LEVELS, Split.TEST, "words"), 100):
        content = one.prompt + one.target
        assert len(tokenizer(content, add_special_tokens=False).input_ids) <= len(content) / 2


def test_it_solves_easy_problems_greedily(model, tokenizer):
    stream = islice(documents(arithmetic.make, [1], Split.VALIDATION, "model"), 20)
    right = 0
    for one in stream:
        ids = tokenizer(one.prompt, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=24, do_sample=False)
        right += tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == one.target
    assert right >= 18
