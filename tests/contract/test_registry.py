"""Methods are found by entry point, and a broken plugin harms nobody but itself."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.contract import registry
from harness.contract.registry import Listing
from harness.core.errors import MethodError, UnknownNameError
from tests.toys import LOOSE, write_method

Install = Callable[..., None]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """The registry remembers what it found; each test installs something else."""
    caches = (registry._points, registry._by_name)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution as pip would: a module, and a dist-info folder that declares methods."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)
    before = set(sys.modules)

    def install(points: str, distribution: str = "plugin", **modules: str) -> None:
        for name, text in modules.items():  # a__b is a/b.py, and a__ is a/__init__.py
            path = site / f"{name.replace('__', '/')}.py"
            path = path.with_name("__init__.py") if name.endswith("__") else path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[harness.methods]\n{points}\n")

    yield install
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(site) in str(sys.modules[name].__file__):
            del sys.modules[name]


def source(name: str = "Mine", label: str = "mine", before: str = "") -> str:
    return LOOSE.format(name=name, label=label, body="", before=before)


def listed(name: str) -> Listing:
    (listing,) = [item for item in registry.listings() if item.name == name]
    return listing


def test_the_built_in_methods_are_listed() -> None:
    items = {item.name: item for item in registry.listings() if item.built_in}
    assert items["dense"].family == "baseline"
    assert items["dense"].savings == "none"
    assert (items["layer-drop"].family, items["layer-drop"].savings) == ("pruning", "real")
    assert items["layer-drop"].summary.startswith("Take out the units")
    assert not any(item.error for item in items.values())


def test_every_built_in_method_bears_its_entry_points_name() -> None:
    for item in registry.listings():
        if item.built_in:
            method = registry.get(item.name)
            assert (method.name, method.family, method.savings) == (item.name, item.family, item.savings)


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from harness.contract import registry; registry.listings();"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plugin_is_listed_as_its_class_says(install: Install) -> None:
    install("mine = a_plugin:Mine", a_plugin=source())
    item = listed("mine")
    assert (item.target, item.distribution, item.version, item.error) == ("a_plugin:Mine", "plugin", "1.0", None)
    assert (item.family, item.savings, item.summary) == ("pruning", "real", "A mine.")


def test_a_plugin_in_a_package_is_listed(install: Install) -> None:
    install("mine = a_package.sub.mod:Mine", a_package__="", a_package__sub__mod=source())
    assert listed("mine").family == "pruning"


def test_names_and_one_method_need_no_import_of_the_others(install: Install) -> None:
    install("mine = a_plugin:Mine\nbad = b_plugin:Mine", a_plugin=source(), b_plugin="1 / 0")
    assert {"mine", "plugin/mine", "bad", "dense"} <= set(registry.names())
    assert not {"a_plugin", "b_plugin"} & set(sys.modules)
    assert registry.get("mine").name == "mine"
    assert "b_plugin" not in sys.modules


def test_what_a_plugin_prints_is_no_part_of_the_list(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("mine = a_plugin:Mine", a_plugin=source(before="print('hello')"))
    assert listed("mine").error is None
    printed = capsys.readouterr()
    assert ("hello" in printed.out, "hello" in printed.err) == (False, True)


def test_a_family_of_a_plugins_own_comes_after_the_known_ones(install: Install) -> None:
    install(
        "mine = a_plugin:Mine\nbad = b_plugin:Mine",
        a_plugin=source().replace("Family.PRUNING", "'kv-cache'"),
        b_plugin="1 / 0",
    )
    assert [item.name for item in registry.listings()][-2:] == ["mine", "bad"]
    assert listed("mine").family == "kv-cache"


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown method 'layerdrop'. Did you mean 'layer-drop'"):
        registry.get("layerdrop")


def test_a_name_like_no_other_is_answered_with_where_to_look() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown method 'xyzzy'. `harness ls methods`"):
        registry.get("xyzzy")


def test_a_built_in_method_wins_a_clash(install: Install) -> None:
    install("dense = a_plugin:Mine", "aaa", a_plugin=source())
    assert registry.get("dense").__module__ == "harness.methods.dense"


def test_a_clash_is_settled_by_naming_the_distribution(install: Install) -> None:
    install("dense = a_plugin:Mine", "aaa", a_plugin=source())
    assert registry.get("aaa/dense").__module__ == "a_plugin"
    assert registry.get("efficiency-harness/dense").__module__ == "harness.methods.dense"


def test_both_sides_of_a_clash_are_listed(install: Install) -> None:
    install("dense = a_plugin:Mine", "aaa", a_plugin=source())
    assert {item.distribution for item in registry.listings() if item.name == "dense"} == {"aaa", "efficiency-harness"}


BROKEN_TO_FIND = {
    "missing module": ("bad = not_there:Mine", {}, "No module named 'not_there'"),
    "missing parent": ("bad = not_there.sub.mod:Mine", {}, "No module named 'not_there'"),
    "missing submodule": ("bad = a_package.mod:Mine", {"a_package__": ""}, "No module named 'a_package.mod'"),
    "syntax error": ("bad = a_plugin:Mine", {"a_plugin": "def"}, "SyntaxError"),
    "null bytes": ("bad = a_plugin:Mine", {"a_plugin": "\0"}, "null bytes"),
    "unknown encoding": ("bad = a_plugin:Mine", {"a_plugin": "# coding: klingon"}, "klingon"),
    "missing class": ("bad = a_plugin:Yours", {"a_plugin": source()}, "has no attribute 'Yours'"),
    "missing dependency": (
        "bad = a_plugin:Mine",
        {"a_plugin": source(before="import not_installed.at_all")},
        "No module named 'not_installed'",
    ),
    "no class given": ("bad = a_plugin", {"a_plugin": source()}, "a_plugin"),
    "no module given": ("bad =", {}, "is not of the form module:Class"),
    "nonsense": ("bad = what is::this", {}, "is not of the form module:Class"),
    "a folder, not a module": ("bad = a_folder:Mine", {"a_folder__x": ""}, "has no attribute 'Mine'"),
    "compiled in": ("bad = sys:Mine", {}, "has no attribute 'Mine'"),
    "a circle": (
        "bad = a_plugin:Mine",
        {"a_plugin": "from b_plugin import Mine", "b_plugin": "from a_plugin import Mine"},
        "partially initialized module",
    ),
}


@pytest.mark.parametrize("what", BROKEN_TO_FIND)
def test_a_broken_plugin_is_listed_and_refused_in_a_sentence(what: str, install: Install) -> None:
    points, modules, error = BROKEN_TO_FIND[what]
    install(f"{points}\ngood = z_plugin:Mine", z_plugin=source(), **modules)
    assert error in str(listed("bad").error)
    assert listed("good").error is None
    with pytest.raises(MethodError, match=r"bad.*plugin 1.0"):
        registry.get("bad")
    assert registry.get("good").name == "mine"


BROKEN_TO_IMPORT = {
    "raises at import": (source(before="1 / 0"), "cannot be loaded: ZeroDivisionError: division by zero"),
    "leaves at import": (source(before="raise SystemExit(3)"), "cannot be loaded: SystemExit: 3"),
    "not a class": ("def Mine(): ...", "is not a subclass of harness.Method"),
    "not a method": ("class Mine: ...", "is not a subclass of harness.Method"),
    "the contract itself": ("from harness import Method as Mine", "is not a subclass of harness.Method"),
    "no name": (source().replace("    name =", "    nome ="), "does not declare the class attribute.s. name"),
    "no family": (source().replace("family =", "famille ="), "does not declare the class attribute.s. family"),
    "a family that is no text": (
        source().replace("Family.PRUNING", "3"),
        "does not declare the class attribute.s. family as text",
    ),
    **{
        f"a family that is {family}": (
            source().replace("Family.PRUNING", family),
            "mine: family=.* is no family: ",
        )
        for family in ("3", "''", "'KV cache'", "'kv_cache'", "b'cache'", "None", "('cache',)")
    },
    "the baseline's family": (source().replace("Family.PRUNING", "'baseline'"), "claims to be the baseline"),
    "no attach": (source().replace("def attach", "def attack"), "does not define attach"),
    "no dataclass": (source().replace("@dataclass(frozen=True, kw_only=True)", ""), "lacks the decorator @dataclass"),
    "not frozen": (source().replace("frozen=True, ", ""), "cannot inherit non-frozen dataclass from a frozen one"),
}


@pytest.mark.parametrize("what", BROKEN_TO_IMPORT)
def test_a_plugin_that_fails_when_imported_is_listed_and_refused_in_a_sentence(what: str, install: Install) -> None:
    text, error = BROKEN_TO_IMPORT[what]
    install("bad = a_plugin:Mine", a_plugin=text)
    with pytest.raises(MethodError, match=error):
        registry.get("bad")
    assert re.search(error, str(listed("bad").error))
    assert registry.get("dense").name == "dense"


def test_broken_metadata_of_one_distribution_hides_no_other(install: Install) -> None:
    install("no equals sign", "aaa")
    install("mine = a_plugin:Mine", a_plugin=source())
    names = [item.name for item in registry.listings()]
    assert {"mine", "dense", "layer-drop"} <= set(names)
    assert len(names) == len(set(names))


def test_a_distribution_without_metadata_is_listed(install: Install, tmp_path: Path) -> None:
    install("mine = a_plugin:Mine", a_plugin=source())
    (tmp_path / "site" / "plugin-1.0.dist-info" / "METADATA").unlink()
    assert listed("mine").family == "pruning"
    assert registry.get("mine").name == "mine"


@pytest.mark.parametrize(
    "line", ["from a_package.inner import Mine", "from .inner import Mine", "from .inner import *"]
)
def test_a_class_that_a_package_passes_on_is_no_error(line: str, install: Install) -> None:
    install("mine = a_package:Mine", a_package__=line, a_package__inner=source())
    assert listed("mine").error is None
    assert registry.get("mine").name == "mine"


def test_a_renamed_class_is_described_by_itself(install: Install) -> None:
    install("mine = a_plugin:Mine", a_plugin="from b_plugin import Yours as Mine", b_plugin=source("Yours", "yours"))
    assert (listed("mine").family, listed("mine").summary) == ("pruning", "A yours.")


def test_an_optional_import_may_be_missing(install: Install) -> None:
    install("mine = a_plugin:Mine", a_plugin=source(before="try:\n    import not_there\nexcept ImportError: pass"))
    assert listed("mine").error is None


def test_what_a_base_class_says_of_savings_holds_for_its_heirs(install: Install) -> None:
    base = source(before="from harness import Savings").replace("family =", "savings = Savings.SIMULATED\n    family =")
    heir = (
        "from b_plugin import Mine, dataclass\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Heir(Mine):\n    '''An heir.'''\n"
    )
    install("heir = a_plugin:Heir", a_plugin=heir, b_plugin=base)
    assert (listed("heir").savings, listed("heir").family) == ("simulated", "pruning")


@pytest.mark.parametrize(
    ("declaration", "says"),
    [
        ("savings = 'real'", r"savings='real' is not valid: Input should be an instance of Savings"),
        ("savings = 1", "savings=1 is not valid"),
        ("exact = 'yes'", "exact='yes' is not valid"),
        ("batchable = None", "batchable=None is not valid"),
    ],
)
def test_a_declaration_of_a_wrong_type_is_refused(install: Install, declaration: str, says: str) -> None:
    install("mine = a_plugin:Mine", a_plugin=source().replace("family =", f"{declaration}\n    family ="))
    with pytest.raises(MethodError, match=f"cannot be used: its declaration {says}"):
        registry.get("mine")
    assert listed("mine").error is not None


def test_a_loose_file_works(tmp_path: Path) -> None:
    path = write_method(tmp_path / "my-own.method.py", "Mine", "my-own")
    assert registry.from_file(path, "Mine")(count=3).label == "my-own:count=3"


def test_two_loose_files_of_one_name_are_two_methods(tmp_path: Path) -> None:
    first, second = (
        registry.from_file(write_method(tmp_path / name / "m.py", body=name), "Loose")() for name in ("a", "b")
    )
    same_as_first = registry.from_file(tmp_path / "a" / "m.py", "Loose")()
    assert first.fingerprint == same_as_first.fingerprint != second.fingerprint


@pytest.mark.parametrize(
    ("text", "cls", "error"),
    [
        (None, "Mine", r"no such file: .*m.py \(a loose method is written ./file.py:Class\)"),
        ("def", "Mine", "m.py cannot be loaded: SyntaxError"),
        ("1 / 0", "Mine", "m.py cannot be loaded: ZeroDivisionError"),
        ("import sys; sys.exit(2)", "Mine", "m.py cannot be loaded: SystemExit: 2"),
        (source(), "Mien", r"unknown class in .*m.py 'Mien'. Did you mean 'Mine'\? It has: Mine."),
        ("", "Mine", r"unknown class in .*m.py 'Mine'. It has: none."),
        ("Mine = 3", "Mine", "m.py:Mine is not a subclass of harness.Method"),
        ("from harness import Method", "Method", "m.py:Method is not a subclass of harness.Method"),
    ],
)
def test_a_bad_loose_file_is_refused(text: str | None, cls: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises((MethodError, UnknownNameError), match=error):
        registry.from_file(path, cls)
