"""What computes is told apart as far as it decides rounding."""

import pytest
import torch

from harness.core import cpu, environment


def test_what_shares_a_chip_with_the_processor_is_not_the_processor() -> None:
    names = {environment.device_name(device) for device in ("cpu", "mps")}
    assert len(names) == len({environment.processor(device) for device in ("cpu", "mps")}) == 2
    assert environment.observe("cpu").identity != environment.observe("mps").identity


def test_the_instruction_set_is_part_of_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment.observe("cpu").identity, environment.processor("cpu")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert (environment.observe("cpu").identity, environment.processor("cpu")) != before
    assert environment.processor("cpu") != before[1]


def test_the_harness_itself_is_told_by_its_source_and_not_by_its_version() -> None:
    observed = environment.observe("cpu")
    newer = observed.model_copy(update={"versions": observed.versions | {"efficiency-harness": "99"}})
    assert newer.identity == observed.identity


def test_a_processor_is_more_than_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"cpu family": "6", "model": "207", "stepping": "unknown", "flags": "fpu avx2 amx_int8"}
    cpu.instruction_sets.cache_clear()
    monkeypatch.setattr(cpu, "described", lambda: told)
    processor = environment._processor()
    cpu.instruction_sets.cache_clear()
    assert (processor.family, processor.model, processor.stepping) == (6, 207, None)
    assert processor.instruction_sets == ("AVX2", "AMX-INT8")
    assert "processor" not in environment.observe("cpu").identity
