"""From records to comparable rows: a run's main score, what it may be compared with, and why it may not be ranked.

Records are handled as the JSON that they are, checked before by ``harness.results.record``.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from harness.core.rounding import Rounding
from harness.reports.columns import BY_KEY, SHOWN_ABOVE, at, ratio
from harness.results.audit import audit_doubt
from harness.results.model_names import dense_of, distinct_names
from harness.results.record import UNSAID, scoring
from harness.results.saving import declared, saving, unexecuted

Record = Mapping[str, Any]

_ASKED: Final = {
    "task": ("task",),
    "documents": ("data", "limit", "samples", "limited"),
    "few-shot examples": ("num_fewshot", "fewshot_as_multiturn"),
    "prompt template": ("apply_chat_template", "system_instruction"),
    "generation": ("gen_kwargs",),
    "way of scoring": ("score_mode", "score_suffix"),
}
"""Readers' names for what lm-eval was asked; whatever is not here goes by its own name."""

LIMITED: Final = "a part of the task's documents"


@dataclass(frozen=True)
class Row:
    """One run as tables show it, beside the dense run that it was compared with."""

    record: Record
    dense: Record | None

    @property
    def id(self) -> str:
        """The run's id."""
        return str(self.record["id"])

    @property
    def is_dense(self) -> bool:
        """Whether this is a reference."""
        return bool(self.record["method"]["family"] == "baseline")

    @cached_property
    def score(self) -> Mapping[str, Any] | None:
        """The run's main score: the first of its own task or group; None if that has none."""
        task = self.record["evaluation"]["task"]
        return next((score for score in self.record["scores"] if score["task"] == task), None)

    @cached_property
    def hardware(self) -> str:
        """The hardware class: the accelerator, or the processor with the threads that were used."""
        environment = self.record["environment"]
        device, threads = environment["device_name"], environment["threads"]
        if environment["device"].startswith("cpu") and threads:
            return f"{device}, {threads} thread{'s' if threads > 1 else ''}"
        return str(device)

    @cached_property
    def model(self) -> str:
        """The model's name, with how its weights were rounded before."""
        model = self.record["model"]
        rounding = Rounding.of(model)
        return f"{model['name']} ({rounding.label})" if rounding else str(model["name"])

    @cached_property
    def settings(self) -> str:
        """How it was asked, in a few words: number format, batch size, shots, how texts were scored."""
        model, asked = self.record["model"], self.record["evaluation"]
        words = [model["dtype"], f"batch {asked['batch_size']}"]
        if asked["num_fewshot"] is not None:
            words.append(f"{asked['num_fewshot']}-shot")
        if asked["apply_chat_template"]:
            words.append("chat template")
        if how := scoring(**{name: asked.get(name, value) for name, value in UNSAID.items()}):
            words.append(how)
        return ", ".join(words)

    @cached_property
    def terms(self) -> dict[str, Any]:
        """All that must agree before two runs are compared, by the name that readers have for it."""
        model, machine = self.record["model"], self.record["environment"]
        asked = {**UNSAID, **self.record["evaluation"]}
        of_processor = ("processor", "instructions") if machine["device"].startswith("cpu") else ()
        named = {name: [asked.pop(key) for key in keys] for name, keys in _ASKED.items()}
        return {
            "model": dense_of(model)["fingerprint"],
            "number format": model["dtype"],
            "attention implementation": model["attention"],
            "machine": [self.hardware, *(machine.get(part) for part in of_processor)],
            **named,
            **{name.replace("_", " "): value for name, value in asked.items()},
        }

    @cached_property
    def group(self) -> str:
        """Runs of one group may be ranked: same dense model, documents, question, hardware and number format."""
        return json.dumps(self.terms, sort_keys=True)

    @cached_property
    def saving(self) -> str:
        """What the run saved: real, simulated, or none, which is "none here" of a method that elsewhere saves.

        A real saving of bytes by a run of more FLOPs than dense's is "bytes alone".
        """
        saved, kernels = saving(self.record), self.record["method"].get("kernels")
        if saved == "real":
            flops = ratio(self.record, self.dense, BY_KEY["flops"])
            return "bytes alone" if flops is not None and flops.value > SHOWN_ABOVE else saved
        return "none here" if saved == "none" and (declared(self.record) != "none" or kernels) else saved

    @cached_property
    def apart(self) -> list[str]:
        """Why the run is shown apart and never ranked; empty for one that may be."""
        record, reasons = self.record, list[str]()
        if record["evaluation"]["limited"]:
            reasons.append(LIMITED)
        reasons += filter(None, (unexecuted(record), audit_doubt(at(record, "flops/audit_ratio"))))
        if record["baseline"] is None and not self.is_dense:
            reasons.append("no dense run of the same documents")
        if self.score is None or self.score["value"] is None:
            reasons.append("no score of its own")
        return reasons


def difference(score: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The paired comparison with dense (see ``harness.results.scores.PairedScore``); None without a baseline."""
    paired: Mapping[str, Any] | None = score and score["vs_baseline"]
    return paired


def score_interval(score: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """The 95 % interval of a score, if the record has one: too few documents have none."""
    if score is None or score["value"] is None or score["low"] is None or score["high"] is None:
        return None
    return score["low"], score["high"]


def rows(records: Iterable[Record]) -> list[Row]:
    """A row for every record, with its dense run where that is among them, and the name that its dense model alone has.

    Another checkpoint is a row of the dense model that it is compared with; its own place is in ``model.pretrained``.
    """
    given = list(records)
    names = distinct_names(dense_of(record["model"]) for record in given)
    every: list[Record] = [
        {**record, "model": {**record["model"], "name": names[dense_of(record["model"])["fingerprint"]]}}
        for record in given
    ]
    by_id = {record["id"]: record for record in every}
    return [Row(record, by_id.get(at(record, "baseline/run_id"))) for record in every]
