"""Cost profiles kept in the user's cache, by their keys. Nothing here needs a model."""

from pathlib import Path

from harness.core.files import write_atomic
from harness.core.paths import cache_folder
from harness.measure.profile import CostProfile


def kept_profile(key: str) -> CostProfile | None:
    """The profile of that key, if it was measured on this machine and by this procedure."""
    try:
        profile = CostProfile.model_validate_json(_path(key).read_bytes())
    except (OSError, ValueError):
        return None
    # without them, an older procedure fitted pairs that are charged no more
    return profile if "windows" in profile.model_fields_set else None


def measured_profile(measurement: str) -> CostProfile | None:
    """The profile of that ``CostProfile.id``; None where another measurement has taken its place."""
    profile = kept_profile(measurement.partition("-")[0])
    return profile if profile is not None and profile.id == measurement else None


def keep_profile(profile: CostProfile) -> None:
    """Keep a profile, in the place of an older one of the same key."""
    write_atomic(_path(profile.key), profile.model_dump_json(indent=2) + "\n")


def described(profile: CostProfile) -> str:
    """What a measurement got, in a line."""
    ended = "ended by its budget (--cost_budget SECONDS for more)" if profile.cut_short else "good enough"
    part = "" if profile.complete else f", prompts timed up to {profile.longest} tokens"
    held_out = profile.held_out
    return (
        f"{profile.label}, off by {profile.fitted_error:.0%} fitted and {held_out.mape:.0%} held out; "
        f"{profile.seconds:.0f} s, {ended}{part}; speed-ups off by {held_out.speedup_error:.0%}, "
        f"{held_out.speedup_worst:.0%} at most"
    )


def _path(key: str) -> Path:
    return cache_folder() / "profiles" / f"{key}.json"
