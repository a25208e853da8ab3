"""What a sweep's file and flags come to, and what is wrong with them in one sentence."""

from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import HarnessError
from harness.sweep.request import asked, merged, read


def test_lists_make_a_grid() -> None:
    request = asked({"method": "layer-drop:count=1..2", "tasks": "a,b", "pretrained": ["x", "y"], "seed": "0|7"})
    jobs = list(request.jobs())
    assert [(job.pretrained, job.seeds[0]) for job in jobs] == [("x", 0), ("x", 7), ("y", 0), ("y", 7)]
    assert {job.methods for job in jobs} == {("layer-drop:count=1", "layer-drop:count=2")}
    assert [task.task for task in jobs[0].tasks] == ["a", "b"]


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (3, [(3, 3, 3, 3)]),
        ("0..1", [(0, 0, 0, 0), (1, 1, 1, 1)]),
        ([0, 1, 2, 3], [(0,) * 4, (1,) * 4, (2,) * 4, (3,) * 4]),
        ([[0, 1234, 1234, 5]], [(0, 1234, 1234, 5)]),
        ("0,1234,1234,5", [(0, 1234, 1234, 5)]),
        (["0", "None,1,2,3"], [(0,) * 4, (None, 1, 2, 3)]),
    ],
)
def test_seeds(seeds: Any, expected: list[tuple[int | None, ...]]) -> None:
    assert list(asked({"tasks": "a", "seeds": seeds}).seeds) == expected


def test_a_method_may_be_a_mapping() -> None:
    methods = [{"method": "gptq", "bits": [3, 4], "sym": True}, "dense", {"method": "x", "layers": [[1, 2], [3]]}]
    assert asked({"methods": methods, "tasks": "a"}).methods == (
        "gptq:bits=3,sym=True",
        "gptq:bits=4,sym=True",
        "dense",
        "x:layers=1/2",
        "x:layers=3",
    )


def test_settings_go_by_the_flags_names() -> None:
    given = {"task": "a", "limit": 5, "batch_size": 4, "measure": "flops,latency", "cost_samples": 7, "price": 2.0}
    (job,) = asked(given).jobs()
    assert (job.limit, job.batch_size, job.costs.prompts, job.costs.usd_per_hour) == (5, 4, 7, 2.0)
    assert job.costs.measure == {"flops", "latency"}


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("method: dense\nsuite: llm-drop\nlimit: 5\nbatch-size: 8\n")
    given = merged(read(path), {"methods": ["x"], "tasks": ["a"], "limit": None})
    assert given == {"methods": ["x"], "tasks": ["a"], "limit": 5, "batch_size": 8}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": "a", "metod": "x"}, "unknown setting 'metod'. Did you mean 'method'"),
        ({"task": "a", "limt": 3}, "Did you mean 'limit'"),
        ({"task": "a", "resume": False}, "unknown setting 'resume'"),
        ({"method": "x"}, "which task?"),
        ({"task": []}, "which task?"),
        ({"task": "a", "tasks": "b"}, "are one setting"),
        ({"task": "a", "suite": "llm-drop"}, "exclude each other"),
        ({"task": "a", "limit": -1}, "limit: Input should be greater than 0"),
        ({"task": "a", "batch_size": "many"}, "batch_size: Input should be a valid integer"),
        ({"task": "a", "measure": "flops,latncy"}, "Did you mean 'latency'"),
        ({"task": "a", "repeats": 1}, "repeats: Input should be greater than or equal to 2"),
        ({"task": "a", "accelerator": "a100-sxm-81"}, "Did you mean 'a100-sxm-80'"),
        ({"task": "a", "seeds": "zero"}, "seeds=zero: expected whole numbers"),
        ({"task": "a", "seeds": "1,2"}, "expected one number or four"),
        ({"task": "a", "method": {"bits": 3}}, "a mapping with the key method"),
        ({"task": "a", "method": 3}, "expected name:key=value"),
        ({"task": "a", "method": ["a:x=1..9999", "b:y=1..9999"]}, "methods: that is more than 10,000"),
        ({"task": "a", "seeds": ["0..9999", "10000..19999"]}, "seeds: that is more than 10,000"),
        ({"task": "a", "pretrained": []}, "pretrained"),
        ({"task": "a", "model_args": {"load_in_8bit": True}}, "quantization is a method here"),
    ],
)
def test_mistakes_are_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(HarnessError) as caught:
        list(asked(given).jobs())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\x00"])
def test_a_file_that_is_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(HarnessError, match=r"sweep\.yaml"):
        read(path)


def test_a_file_that_names_one_thing_many_times_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    lists = "".join(f"  - &l{number} [{', '.join([f'*l{number - 1}'] * 9)}]\n" for number in range(1, 20))
    path.write_text(f"method:\n  - &l0 [x]\n{lists}")
    with pytest.raises(HarnessError, match="more than 100,000 values"):
        read(path)
    path.write_text("method: &all [dense, *all]\n")
    with pytest.raises(HarnessError, match="more than 100,000 values"):
        read(path)


def test_a_date_in_a_file_is_to_be_quoted(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("model_args: {revision: 2024-05-01}\n")
    with pytest.raises(HarnessError, match="2024-05-01 is read as a date: put it between quotes"):
        read(path)
