"""Which functions of the libraries that make a result have been replaced.

Only names that existed before count: registering something new, as transformers invites its users to do with attention
implementations, is no patch. Run as a script, it imports modules in fresh processes and reports what each replaced.
"""

import importlib
import importlib.util
import json
import os
import sys
import types
import warnings
from collections.abc import Iterator
from typing import IO, Any

_LIBRARIES = ("torch", "transformers", "lm_eval", "harness", "numpy", "datasets", "safetensors")
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, staticmethod, classmethod, property, type)


def library_functions() -> dict[tuple[str, ...], Any]:
    """Every function, class and method of the loaded modules of the libraries, by the parts of its dotted name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated names warn when they are merely read
        return dict(_functions())


def _functions() -> Iterator[tuple[tuple[str, ...], Any]]:
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] not in _LIBRARIES:
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, _FUNCTIONS):
                yield (module_name, name), value
            if isinstance(value, type) and value.__module__ == module_name:
                for attribute, inner in list(vars(value).items()):
                    if isinstance(inner, _FUNCTIONS):
                        yield (module_name, name, attribute), inner
    models = sys.modules.get("transformers.modeling_utils")
    if models is not None:
        for name, function in models.ALL_ATTENTION_FUNCTIONS.items():
            yield ("transformers.modeling_utils", f"ALL_ATTENTION_FUNCTIONS[{name!r}]"), function


def replaced(before: dict[tuple[str, ...], Any], after: dict[tuple[str, ...], Any]) -> list[str]:
    """Dotted names that are bound to another object than before, or gone."""
    return [".".join(name) for name, value in before.items() if after.get(name) is not value]


def load() -> None:
    """Import the libraries that make a result, and what of the harness observes and evaluates."""
    for module in (
        "transformers.models.llama.modeling_llama",
        "lm_eval.evaluator",
        "harness.measure.audit",
        "harness.measure.trace",
        "harness.measure.traffic",
        "harness.evaluate.outcome",
        "harness.evaluate.evaluation",
    ):
        importlib.import_module(module)


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Answer requests, one JSON object a line: import ``module`` (from ``file``, if given) with sys.path ``path``.

    Each is imported in a fork, so that the libraries are loaded once and every module finds them untouched. What a
    module prints goes to stderr.
    """
    before = library_functions()
    os.dup2(2, 1)
    for line in requests:
        child = os.fork() if hasattr(os, "fork") else 0
        if child:
            os.waitpid(child, 0)
            continue
        answers.write(json.dumps(_answer(json.loads(line), before)) + "\n")
        answers.flush()
        if hasattr(os, "fork"):
            os._exit(0)


def _answer(request: dict[str, Any], before: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    from harness.testing.network import no_network

    sys.path[:] = request["path"]
    with no_network() as attempts:
        try:
            _import(request["module"], request["file"])
        except BaseException as error:  # a module may do anything, exit included
            return {"error": f"{type(error).__name__}: {error}"}
    return {"replaced": replaced(before, library_functions()), "attempts": attempts}


def _import(module: str, file: str) -> None:
    if not file:
        importlib.import_module(module)
        return
    spec = importlib.util.spec_from_file_location(module, file)
    assert spec is not None
    assert spec.loader is not None
    loose = sys.modules[module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loose)


if __name__ == "__main__":
    load()
    serve(sys.stdin, os.fdopen(os.dup(1), "w"))
