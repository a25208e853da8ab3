"""A model whose layers scan the text, through the command: what is not counted is null with a reason, never 0."""

import pytest

from harness.results.store import Store
from harness.testing.tiny import tiny_tokenizer
from tests.benchmarks.architectures import tiny as tiny_architecture

SCANS = "carry a state from token to token"
NULL = (
    "flops",
    "memory.kv_peak",
    "memory.dense_kv_peak",
    "trace.attention_layer_tokens",
    "trace.mlp_layer_tokens",
    "trace.layer_tokens_total",
)


@pytest.fixture(scope="session")
def scanning(tmp_path_factory):
    """Folders of random models, one with scans alone and one with attention in between."""
    parent = tmp_path_factory.mktemp("scanning")
    for name in ("mamba", "jamba"):
        tiny_architecture(name).save_pretrained(parent / name)
        tiny_tokenizer().save_pretrained(parent / name)
    return parent


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_dense_runs_and_says_what_it_could_not_count(harness, scanning, tiny_tasks, tmp_path, name):
    given = ("--pretrained", scanning / name, "--include_path", tiny_tasks, "--tasks", "tiny_choice,tiny_answer")
    served = ("--measure", "latency,ideal,memory", "--cost_samples", 2, "--repeats", 2, "--warmup", 0)
    done = harness("run", *given, *served, "--method", "dense", "-o", "runs")
    assert done.code == 0, done.err
    folders = Store(tmp_path / "runs").folders()
    assert len(folders) == 2
    for folder in folders:
        record = folder.record()
        for path in NULL:
            value = record
            for part in path.split("."):
                value = getattr(value, part)
            assert value is None, path
            assert SCANS in record.missing[path]
        assert record.time is not None
        assert record.time.latency is not None
        assert record.time.ideal is None
        assert SCANS in record.missing["time.ideal"]
        assert record.trace.head_tokens > 0
        assert record.model.layers == 4
        assert record.model.active_parameters is None
    assert harness("validate", "runs").code == 0
    assert harness("report", "--results", "runs", "-o", "report").code == 0
    assert harness("site", "build", "--results", "runs", "-o", "site").code == 0
    assert SCANS in harness("show", folders[0].path).out


@pytest.mark.parametrize("method", ["layer-drop:count=1", "int8-dynamic", "kv-evict:scorer=knorm", "ngram"])
def test_any_other_method_is_refused_in_a_sentence(harness, scanning, tiny_tasks, method):
    given = ("--pretrained", scanning / "mamba", "--include_path", tiny_tasks, "--tasks", "tiny_choice")
    sentence = harness("run", *given, "--method", method).err.rpartition("harness: ")[2]
    assert sentence.startswith(method.partition(":")[0])
    assert f"runs as dense alone, because its layers {SCANS}" in sentence
