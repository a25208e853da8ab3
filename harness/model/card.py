"""What a model's card says of it."""

import re
from pathlib import Path
from typing import Final

_LICENSE: Final = re.compile(r"[\w.+ -]{1,60}")


def card_license(folder: Path) -> str | None:
    """The licence that the card in a model's folder names, by the hub's word or its own; None without one."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        card = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        return None
    name = card.get("license_name") if card.get("license") == "other" else card.get("license")
    return name if isinstance(name, str) and _LICENSE.fullmatch(name) else None
