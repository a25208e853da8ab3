"""A kernel that is wrong is not used, a library is compiled once, and what is missing is said in a sentence."""

import ctypes
import logging

import pytest
import torch

from harness.core.cpu import KERNEL_SETS
from harness.core.errors import CompileError, KernelError, SpecError
from harness.model.weights import compiled, sparse_kernels
from harness.model.weights.compiled import library
from harness.model.weights.sparse_kernels import SOURCE, Kernels, check

pytestmark = pytest.mark.cpu("the kernels are in C")


def test_a_kernel_that_differs_is_refused_and_a_simpler_one_is_used(kernels, monkeypatch, caplog):
    def wrong(level, int8, rows, threads, tokens, inputs, out, x, y, *rest):
        kernels.run(0, int8, rows, threads, tokens, inputs, out, x, y, *rest)
        if level >= 3 and rows == 4:
            numbers = (ctypes.c_float * (tokens * out)).from_address(y)
            torch.frombuffer(numbers, dtype=torch.float32)[-1] += 1

    with pytest.raises(KernelError, match="avx512-vnni kernel for int8 in blocks of 4x1 differs"):
        check(Kernels(wrong, level=4))

    class Library:
        block_sparse = staticmethod(wrong)

        def block_sparse_level(self):
            return 4

    monkeypatch.setattr(sparse_kernels, "library", lambda source: Library())
    with caplog.at_level(logging.WARNING, "harness"):
        plain, avx2, avx512, vnni, amx = sparse_kernels._load.__wrapped__(None)
    assert (plain.level, avx2.level, avx512.level) == (0, 1, 2)
    assert "is not used" in vnni
    assert "is not used" in caplog.text
    names = sparse_kernels.by_name((plain, avx2, avx512, vnni, amx), 4, "int8")
    assert list(names) == ["avx512-vnni", "avx2", "plain C"]
    assert names == {"avx512-vnni": vnni, "avx2": avx512, "plain C": plain}


def test_a_limit_holds(isa, kernel_sets):
    loaded = sparse_kernels.load()
    able = [name for name, kernels in zip(KERNEL_SETS, loaded, strict=True) if not isinstance(kernels, str)]
    assert able == list(KERNEL_SETS[: KERNEL_SETS.index(isa) + 1])
    for name, reason in list(zip(KERNEL_SETS, loaded, strict=True))[len(able) :]:
        assert reason in (f"HARNESS_ISA={isa} leaves {name} out", f"this processor has no {name}")


def test_a_limit_that_names_nothing_is_a_sentence(monkeypatch):
    monkeypatch.setenv("HARNESS_ISA", "sse9")
    with pytest.raises(SpecError, match="HARNESS_ISA=sse9: expected plain, avx2, avx512, avx512-vnni or amx"):
        sparse_kernels.load()


def test_a_limit_above_the_processor_is_a_sentence(kernels, monkeypatch):
    class Library:
        block_sparse = kernels.run

        def block_sparse_level(self):
            return 2

    monkeypatch.setattr(sparse_kernels, "library", lambda source: Library())
    with pytest.raises(SpecError, match=r"HARNESS_ISA=amx: the best that this processor has is avx512$"):
        sparse_kernels._load.__wrapped__("amx")


def test_no_compiler_is_a_sentence(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(CompileError, match="no C compiler: CC=no-such-compiler is not found"):
        library(SOURCE)
    assert set(sparse_kernels._load.__wrapped__(None)) == {"no C compiler: CC=no-such-compiler is not found"}


def test_a_file_that_does_not_compile_is_a_sentence(tmp_path, kernel_sets):
    (tmp_path / "broken.c").write_text("int f( { }\n")
    with pytest.raises(CompileError, match=rf"cannot compile {tmp_path.name}: .*error"):
        library(tmp_path)


def test_a_folder_without_source_is_a_sentence(tmp_path):
    with pytest.raises(CompileError, match=r"no C files in .*: the installation is incomplete"):
        library(tmp_path)


def test_a_library_is_compiled_once(tmp_path, monkeypatch, kernel_sets):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    source = tmp_path / "source"
    source.mkdir()
    (source / "one.c").write_text("int one(void) { return 1; }\n")
    assert library(source).one() == 1
    monkeypatch.setattr(compiled, "_build", lambda *_: pytest.fail("compiled again"))
    library(source)
    assert [path.suffix for path in (tmp_path / "kernels").iterdir()] == [".so"]
