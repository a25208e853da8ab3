"""Which functions of the libraries that make a result are in place, and which of them somebody has replaced.

Only what was there before counts: registering something new, as transformers invites its users to do with
attention implementations, is no patch. Run as a script, it imports modules in fresh processes and says what each
replaced.
"""

import importlib
import importlib.util
import json
import os
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

_LIBRARIES = ("torch", "transformers", "lm_eval", "harness", "numpy", "datasets", "safetensors")
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, staticmethod, classmethod, property, type)


def library_functions() -> dict[str, Any]:
    """Every function, class and method of the loaded modules of the libraries, by its dotted name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated names warn when they are merely looked at
        return dict(_functions())


def _functions() -> Iterator[tuple[str, Any]]:
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] not in _LIBRARIES:
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, _FUNCTIONS):
                yield f"{module_name}.{name}", value
            if isinstance(value, type) and value.__module__ == module_name:
                for attribute, inner in list(vars(value).items()):
                    if isinstance(inner, _FUNCTIONS):
                        yield f"{module_name}.{name}.{attribute}", inner
    models = sys.modules.get("transformers.modeling_utils")
    if models is not None:
        for name, function in models.ALL_ATTENTION_FUNCTIONS.items():
            yield f"transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS[{name!r}]", function


def replaced(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names that are bound to something else than before, or gone."""
    return [name for name, value in before.items() if after.get(name) is not value]


def main() -> None:
    """Answer requests, one JSON object a line: import ``module`` (from ``file``, if given) with sys.path ``path``.

    Each is imported in a fork, so that the libraries are loaded once and every module finds them untouched.
    """
    for module in ("transformers.models.llama.modeling_llama", "lm_eval.evaluator", "harness.measure.audit"):
        importlib.import_module(module)
    for module in (
        "harness.measure.trace",
        "harness.measure.traffic",
        "harness.evaluate.outcome",
        "harness.evaluate.evaluation",
    ):
        importlib.import_module(module)
    before = library_functions()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the module prints is no answer
    for line in sys.stdin:
        child = os.fork() if hasattr(os, "fork") else 0
        if child:
            os.waitpid(child, 0)
            continue
        answers.write(json.dumps(_answer(json.loads(line), before)) + "\n")
        answers.flush()
        if hasattr(os, "fork"):
            os._exit(0)


def _answer(asked: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    from harness.testing.network import no_network

    sys.path[:] = asked["path"]
    with no_network() as attempts:
        try:
            _import(asked["module"], asked["file"])
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
    main()
