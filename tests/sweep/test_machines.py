"""Which machines of a Ray cluster workers go to, by what Ray says of them."""

from typing import Final

import pytest

from harness.core.errors import HarnessError
from harness.sweep import machines

CLUSTER: Final = {
    "head": {"node:10.0.0.1": 1.0, "object_store_memory": 1e9},
    "a": {"CPU": 16.0, "GPU": 4.0, "accelerator_type:H100": 1.0},
    "b": {"CPU": 16.0, "GPU": 4.0, "accelerator_type:H100": 1.0},
    "c": {"CPU": 64.0, "GPU": 8.0, "accelerator_type:A100": 1.0, "fast_disk": 1.0},
}


@pytest.mark.parametrize(
    ("asked", "able", "room"),
    [
        ({"num_cpus": 1}, "abc", 96),
        ({"num_cpus": 1, "num_gpus": 1}, "abc", 16),
        ({"num_cpus": 8, "num_gpus": 1}, "abc", 12),
        ({"num_cpus": 32}, "c", 2),
        ({"fast_disk": 0.5, "num_cpus": 0}, "c", 2),
        ({"num_gpus": 0.5}, "abc", 32),
    ],
)
def test_workers_go_where_what_they_ask_for_is(asked: dict[str, float], able: str, room: int) -> None:
    on = machines.able(CLUSTER, asked)
    assert "".join(on) == able
    assert machines.room(on, asked) == room


def test_what_no_machine_has_is_refused() -> None:
    with pytest.raises(HarnessError, match="no machine of the Ray cluster has num_cpus=65, num_gpus=1: give other"):
        machines.able(CLUSTER, {"num_cpus": 65, "num_gpus": 1})


def test_runs_are_compared_on_one_kind_of_machine() -> None:
    asked = {"num_gpus": 1}
    kinds = machines.kinds(machines.able(CLUSTER, asked), asked)
    assert kinds == {"a": "H100", "b": "H100", "c": "A100"}
    assert machines.most(kinds) == "H100"
    assert machines.most({"a": "H100", "c": "A100"}) == "A100"
    with pytest.raises(HarnessError, match="no machine of the Ray cluster answers"):
        machines.most({})
