"""Two processes under ``accelerate launch`` share the documents and leave the one record that one process leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.results.store import Store
from tests.conftest import Harness

pytestmark = [pytest.mark.slow, pytest.mark.cpu("accelerate starts the processes of this test on CPUs")]


def test_two_processes_equal_one(harness: Harness, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path) -> None:
    job = [
        "run",
        "--tasks",
        "tiny_choice,tiny_text",
        "--limit",
        "7",
        "--pretrained",
        tiny_folder,
        "--include_path",
        tiny_tasks,
    ]
    job += ["--method", "layer-drop:layers=1", "--offline", "--device", "cpu"]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--main_process_port", "0", "-m", "harness"]
    alone = harness(*job, "--output_path", "one")
    assert alone.code == 0, alone.err
    words = [str(word) for word in (*launch, *job, "--output_path", "two")]
    subprocess.run(words, cwd=tmp_path, env=os.environ, check=True, capture_output=True)
    one, two = ({folder.path.name: folder for folder in Store(tmp_path / place).folders()} for place in ("one", "two"))
    assert len(one) == 4
    assert one.keys() == two.keys()
    for name, folder in one.items():
        assert two[name].record().scores == folder.record().scores
        assert two[name].record().trace == folder.record().trace
        assert json.dumps(list(two[name].samples())) == json.dumps(list(folder.samples()))
