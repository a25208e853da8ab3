"""The front ends say what came of a check: as results, as tests, as a table with an exit code."""

import json
import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.core.errors import UnknownNameError
from harness.evaluate import quiet
from harness.testing import Check, Outcome, checks_for, parametrize_methods, run
from harness.testing.network import no_network
from harness.testing.outcome import Failed, Skipped
from harness.testing.subject import Subject
from tests.testing.sound import Sound


def check(name, error=None):
    def body(subject):
        if error is not None:
            raise error

    return Check(name, "Something holds.", None, body)


def outcomes(*checks, **expected):
    return {result.name: (result.outcome, result.message) for result in run(checks, expected)}


def test_outcomes_and_reasons():
    found = outcomes(check("a"), check("b", Failed("no")), check("c", Skipped("not here")), check("d", KeyError("x")))
    assert found["a"] == (Outcome.PASSED, "")
    assert found["b"] == (Outcome.FAILED, "no")
    assert found["c"] == (Outcome.SKIPPED, "not here")
    assert found["d"][0] is Outcome.FAILED
    assert found["d"][1].startswith("raised KeyError: 'x' (test_check.py:")


def test_an_expected_failure_is_no_failure():
    assert outcomes(check("a", Failed("no")), a="known") == {"a": (Outcome.EXPECTED, "known")}


@pytest.mark.parametrize("error", [None, Skipped("not here")])
def test_a_reason_does_not_outlive_its_cause(error):
    outcome, message = outcomes(check("a", error), a="known")["a"]
    assert outcome is Outcome.FAILED
    assert "take it off the list" in message


def test_an_expected_failure_must_name_a_check():
    with pytest.raises(UnknownNameError, match=r"'cached-decodin'.*Did you mean 'cached-decoding'"):
        run(checks_for("dense"), {"cached-decodin": "why not"})


def test_checks_have_names_and_sentences():
    checks = list(checks_for("dense"))
    assert len({each.name for each in checks}) == len(checks) >= 20
    assert all(each.description.endswith(".") for each in checks)


@pytest.mark.parametrize(
    ("asked", "label"),
    [
        ("layer-drop", "layer-drop:count=3,samples=4,length=64"),
        ("layer-drop:count=1", "layer-drop:count=1"),
        (Sound, "sound:count=2"),
        (Sound(count=1), "sound"),
        ("layer-drop+wanda:layers=1", "layer-drop:count=3,samples=4,length=64+wanda:layers=1"),
    ],
    ids=str,
)
def test_a_method_without_parameters_is_checked_at_its_strongest_example(asked, label):
    assert Subject.of(asked).stack.label == label


def test_a_test_for_every_check_of_every_method():
    mark = parametrize_methods([Sound, "dense"], expected_failed_checks={"deterministic": "it is not"})
    names, parameters = mark.args
    assert names == "check"
    assert len(parameters) == 2 * len(list(checks_for("dense")))
    marked = {parameter.id: parameter.marks for parameter in parameters if parameter.marks}
    assert set(marked) == {"sound:count=2-deterministic", "dense-deterministic"}
    assert all(mark.kwargs == {"reason": "it is not", "strict": True} for (mark,) in marked.values())


def test_a_check_that_does_not_apply_is_a_skipped_test():
    _, parameters = parametrize_methods(["dense"]).args
    test = next(parameter.values[0] for parameter in parameters if parameter.id == "dense-saves-measurably")
    with pytest.raises(pytest.skip.Exception, match="its savings are none"):
        test()


def test_no_network_refuses_and_remembers():
    with no_network() as attempts:
        with pytest.raises(OSError, match=r"no network during the checks: example\.com"):
            socket.create_connection(("example.com", 80))
        with socket.socket() as one, pytest.raises(OSError, match="no network"):
            one.connect(("127.0.0.1", 9))
        ours, theirs = socket.socketpair()
        ours.close()
        theirs.close()
    assert attempts == ["example.com", "('127.0.0.1', 9)"]


@pytest.fixture
def invoke(monkeypatch):
    monkeypatch.setattr(quiet, "silence", lambda *args, **kwargs: None)  # it sets variables for the whole process
    return lambda *args: CliRunner().invoke(app, ["check", *args])


def test_the_command_prints_json_and_fails_by_exit_code(invoke, tmp_path):
    path = tmp_path / "silent.py"
    path.write_text(
        "from contextlib import nullcontext\nfrom dataclasses import dataclass\nfrom harness import Family, Method\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Silent(Method):\n"
        "    name, family = 'silent', Family.PRUNING\n"
        "    def attach(self, model, prepared):\n        raise RuntimeError('boom')\n"
    )
    expected = ["--expected_failed", "declares-itself=it is a test"]
    done = invoke(f"{path}:Silent", "--family", "llama", "--json", *expected)
    found = {each["name"]: each for each in json.loads(done.stdout)["checks"]}
    assert done.exit_code == 1
    assert found["declares-itself"]["outcome"] == "expected failure"
    assert found["declares-itself"]["message"] == "it is a test"
    assert found["supported-models"]["outcome"] == "failed"
    assert "RuntimeError: boom (silent.py:8)" in found["supported-models"]["message"]
    assert found["cached-decoding"]["outcome"] == "skipped"


def test_the_command_prints_a_table(invoke):
    done = invoke("dense", "--family", "llama")
    assert done.exit_code == 0
    assert "cached-decoding" in done.stdout
    assert "passed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["dense", "--family", "lama"], "Did you mean 'llama'"),
        (["dense", "--expected_failed", "deterministic"], "a failure needs a reason"),
        (["dens"], "Did you mean 'dense'"),
    ],
    ids=str,
)
def test_the_command_refuses_in_words(invoke, args, says):
    assert says in str(invoke(*args).exception)


@pytest.mark.slow
def test_pytest_is_not_needed():
    code = "import sys, harness.testing.parametrize as p; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "import tests.testing.patches_torch", "import harness.methods.pruning.wanda"])
def test_a_patch_at_import_is_caught_wherever_the_libraries_were_loaded(first):
    """Also where the process that imports is a fork of one that has imported the method before."""
    code = (
        f"{first}\nfrom harness.testing.checks.isolation import imports_cleanly, load_early\n"
        "load_early()\nfrom harness.testing.subject import Subject\n"
        "from tests.testing.patches_torch import PatchesAtImport\nimports_cleanly(Subject.of(PatchesAtImport))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "softsign" in done.stderr.splitlines()[-1], done.stderr
