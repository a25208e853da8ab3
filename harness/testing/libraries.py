"""Which functions of torch and transformers are in place, and which of them somebody has replaced.

Only what was there before counts: registering something new, as transformers invites its users to do with
attention implementations, is no patch. Run as a script, it imports a module in a fresh process and prints what
that replaced, as a JSON list.
"""

import importlib
import importlib.util
import json
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

_LIBRARIES = ("torch", "transformers")
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
    """Import the module that standard input names, as {"module", "file", "path"}, and print what it replaced."""
    from harness.testing.network import no_network

    asked = json.load(sys.stdin)
    sys.path[:] = asked["path"]
    importlib.import_module("transformers.models.llama.modeling_llama")
    before = library_functions()
    with no_network() as attempts:
        if asked["file"]:
            spec = importlib.util.spec_from_file_location(asked["module"], asked["file"])
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[asked["module"]] = module
            spec.loader.exec_module(module)
        else:
            importlib.import_module(asked["module"])
    json.dump({"replaced": replaced(before, library_functions()), "attempts": attempts}, sys.stdout)


if __name__ == "__main__":
    main()
