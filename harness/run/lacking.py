"""Which costs that were asked for a finished run's record does not have yet."""

from harness.measure.profiles import kept_profile
from harness.results import costs
from harness.results.record import RunRecord
from harness.results.sources import stale
from harness.run.graph import lacks_graph
from harness.run.spec import Measure, RunSpec
from harness.run.throughput import lacks


def lacking(record: RunRecord, spec: RunSpec, documents: int) -> frozenset[Measure]:
    """What was asked for and is not in a record of so many documents, or was measured with other settings."""
    plan, time = spec.job.costs, record.time or costs.Time()
    done = set[str](record.measured if spec.job.resume else ())
    names = ("rounds", "warmup", "new_tokens", "seed")
    settings = time.settings
    if (
        settings is None
        or any(getattr(settings, name) != getattr(plan, name) for name in names)
        or not min(plan.prompts, documents) <= settings.prompts <= plan.prompts
    ):
        done.discard("latency")
    measurements = {time.ideal.profile, time.ideal.own_profile} if time.ideal else set()
    is_old = any(_is_improved(each, plan.budget_s) for each in measurements if each is not None)
    if is_old or {"time.ideal", "time.roofline"} & stale(record) or not set(plan.accelerators) <= time.roofline.keys():
        done.discard("ideal")
    refused = "throughput" in done and time.throughput is None  # with the reason in what is missing
    if not refused and any(lacks(record, plan, size) for size in plan.batch_sizes):
        done.discard("throughput")
    if lacks_graph(record, plan):
        done.discard("graph")
    return plan.measure - {"flops"} - done - ({"ideal"} if spec.checkpoint else set())


def _is_improved(measurement: str, budget_s: float | None) -> bool:
    """Whether another run has a better profile than this one of the same modules, or this run is to measure it."""
    profile = kept_profile(measurement.partition("-")[0])
    return profile is not None and (profile.id != measurement or profile.improvable(budget_s))
