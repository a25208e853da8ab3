"""The licence that a model's card names."""

from pathlib import Path

import pytest

from harness.model.card import card_license


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("---\nlicense: apache-2.0\n---\nA model.", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: llama3.2\n---\n", "llama3.2"),
        ("---\nlicense: other\n---\n", None),
        ("---\nlicense: [mit, gpl]\n---\n", None),
        ("---\nlicense: <b>\n---\n", None),
        ("---\nlicense: {a\n---\n", None),
        ("---\n- a list\n---\n", None),
        ("no header", None),
        (None, None),
    ],
)
def test_a_license_is_a_name_or_unknown(card: str | None, name: str | None, tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert card_license(tmp_path) == name
