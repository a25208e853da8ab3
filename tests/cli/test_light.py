"""Commands that only look something up start fast: none of the heavy libraries is imported."""

import os
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "lm_eval", "datasets", "numpy"}
PROBE = """
import sys
from harness.cli import main
sys.argv = ["harness", *sys.argv[1:]]
try:
    main()
except SystemExit as exit:
    assert not exit.code
print("MODULES", *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("--help", "doctor"),
        ("run --help", "--method_args"),
        ("sweep --help", "--retry_failed"),
        ("tune --help", "--objectives"),
        ("recommend --help", "--budget"),
        ("ls --help", "tasks"),
        ("ls methods", "layer-drop"),
        ("ls models", "smollm2-135m"),
        ("ls runs", ""),
        ("ls tasks", "pocket"),
        ("ls tasks gsm8k*", "gsm8k_cot"),
        ("site --help", "serve"),
        ("submit --help", "leaderboard"),
        ("validate --help", "against"),
        ("report --help", "--cost"),
        ("analyze attention --help", "--lengths"),
    ],
)
def test_imports_nothing_heavy(command: str, expected: str, tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *command.split()],
        cwd=str(tmp_path),
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    loaded = set(done.stderr.partition("MODULES")[2].split())
    assert "typer" in loaded
    assert not loaded & HEAVY
