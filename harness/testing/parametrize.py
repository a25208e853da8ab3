"""The checks as pytest tests."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.testing.check import Check, refuse_unknown
from harness.testing.checks import checks_for
from harness.testing.outcome import Skipped
from harness.testing.subject import FAMILIES, Checked


def parametrize_methods(
    methods: Iterable[Checked],
    *,
    expected_failed_checks: Mapping[str, str] | None = None,
    families: Sequence[str] = FAMILIES,
) -> Any:
    """Turn one test function into a test for every check of every method; the function calls its ``check``::

        @parametrize_methods([MyMethod, MyMethod(strength=0.5), "layer-drop:unit=mlp"])
        def test_my_method(check):
            check()

    Args:
        methods: classes, objects, or what the command line takes.
        expected_failed_checks: names of checks that these methods are known to fail, with the reason; the tests are
            strict xfails.
        families: the families of decoders they are tried on.

    Raises:
        UnknownNameError: an expected failure of a check that does not exist.
    """
    import pytest

    expected = dict(expected_failed_checks or {})
    parameters = []
    for method in methods:
        checks = list(checks_for(method, families))
        refuse_unknown(expected, checks)
        for check in checks:
            reason = expected.get(check.name)
            marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True)]
            label = check.subject.stack.label
            parameters.append(pytest.param(_test(check), id=f"{label}-{check.name}", marks=marks))
    return pytest.mark.parametrize("check", parameters)


def _test(check: Check) -> Callable[[], None]:
    def test() -> None:
        import pytest

        try:
            check()
        except Skipped as skipped:
            pytest.skip(str(skipped))

    return test
