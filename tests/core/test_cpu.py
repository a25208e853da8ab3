"""Instruction sets are read from the system, and limits from the environment."""

from pathlib import Path

import pytest

from harness.core import cpu
from harness.core.environment import observe
from harness.core.errors import SpecError

pytestmark = pytest.mark.cpu("instruction sets are those of a processor")
CPUINFO = (
    "processor : 0\nmodel name : A\nflags : fpu sse2 avx2 avx512f avx512_vnni\n\nprocessor : 1\nflags : fpu amx_int8\n"
)


@pytest.mark.parametrize(
    ("content", "sets"),
    [(CPUINFO, ("AVX2", "AVX512", "AVX512-VNNI")), ("flags : fpu\n", ()), ("Features : asimd\n", None), (None, None)],
)
def test_sets_are_those_that_the_system_tells(
    content: str | None, sets: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> str:
        if content is None:
            raise FileNotFoundError(path)
        return content

    monkeypatch.setattr(Path, "read_text", read)
    assert cpu.instruction_sets.__wrapped__() == sets


def test_a_limit_is_one_of_the_names_or_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, limit in (("", None), ("avx512", "avx512")):
        monkeypatch.setenv("HARNESS_ISA", value)
        assert cpu.kernel_limit() == limit
    monkeypatch.setenv("HARNESS_ISA", "AVX512")
    with pytest.raises(SpecError, match="HARNESS_ISA=AVX512: expected plain, avx2, avx512, avx512-vnni or amx"):
        cpu.kernel_limit()


def test_a_limit_makes_another_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HARNESS_ISA", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"):
        monkeypatch.delenv(name, raising=False)
    free = observe("cpu")
    monkeypatch.setenv("HARNESS_ISA", "plain")
    assert observe("cpu").instructions == f"{free.instructions}, HARNESS_ISA=plain"
    assert observe("cpu").identity != free.identity
