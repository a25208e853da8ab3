"""Names by which several models are told apart: two checkpoints of one folder name are two models."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

PARTS: Final = 4
"""Parts of a model's place that a name has at the most."""


def dense_of(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The dense model that a run is compared with: its own, or that which another checkpoint stands beside.

    Args:
        model: the ``model`` section of a record, as JSON.
    """
    return model.get("base") or model


def distinct_names(models: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """A name for each fingerprint, which no other among them has.

    It is the record's name where that is enough, else with as much before it of the hub's name or of the path as it
    takes, else with a digest of the fingerprint.

    Args:
        models: the ``model`` sections of records, as JSON.
    """
    places: dict[str, dict[str, str]] = defaultdict(dict)  # by name and fingerprint: the shortest place, if several
    for model in models:
        of_name = places[model["name"]]
        known = of_name.get(model["fingerprint"], model["pretrained"])
        of_name[model["fingerprint"]] = min(known, model["pretrained"], key=lambda place: (len(place), place))
    named = {
        fingerprint: name for given, of_name in places.items() for fingerprint, name in _named(given, of_name).items()
    }
    uses = Counter(named.values())  # the longer name of one model may be the whole name of another
    return {each: name if uses[name] == 1 else _with_digest(name, each) for each, name in named.items()}


def _named(name: str, places: Mapping[str, str]) -> dict[str, str]:
    if len(places) == 1:
        return dict.fromkeys(places, name)
    for count in range(2, PARTS + 1):
        tails = {fingerprint: _tail(place, count) for fingerprint, place in places.items()}
        if len(set(tails.values())) == len(tails):
            return tails
    return {fingerprint: _with_digest(name, fingerprint) for fingerprint in places}


def _with_digest(name: str, fingerprint: str) -> str:
    return f"{name} ({hashlib.sha256(fingerprint.encode()).hexdigest()[:6]})"


def _tail(place: str, count: int) -> str:
    """The last parts of a hub's name or of a path."""
    parts = [part for part in place.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return "/".join(parts[-count:])
