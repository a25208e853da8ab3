"""The schemas of results are checked in, and what leaves them is refused."""

import gzip
import json
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from harness.results.cost_lines import COST_LINE
from harness.results.record import RunRecord
from harness.results.samples import SAMPLE_LINE
from harness.results.schemas import schemas
from tests.conftest import ROOT
from tests.toys import record_json, sample_json

FOLDER = ROOT / "harness" / "results"


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads((FOLDER / "record.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def written(**changes: Any) -> dict[str, Any]:
    return json.loads(RunRecord.model_validate(record_json(**changes)).model_dump_json())


@pytest.mark.parametrize("name", schemas())
def test_the_schema_in_the_tree_is_that_of_the_code(name: str) -> None:
    assert json.loads((FOLDER / name).read_text()) == schemas()[name]


SEGMENT = {
    "phase": "decode", "queries": 1, "padding": 0, "context": 4, "forwards": 2, "rows": 1,
    "attention": [[1, 1.0, 4]], "mlp": [[1, 1.0, 4]], "head": [1, 1.0], "fill": [1, 0, 0, 0],
}  # fmt: skip
COSTS = {
    "task": "t", "doc_id": 0, "doc_hash": "a", "ideal_s": 0.5,
    "requests": [{"prompt_tokens": 3, "new_tokens": 0, "run": {"latency": [0.1]}, "segments": [SEGMENT]}],
}  # fmt: skip
LINES = {
    "a run's document": (SAMPLE_LINE, sample_json(rows=[{"requests": [[0, 0]], "segments": [SEGMENT]}])),
    "a packed document": (SAMPLE_LINE, sample_json(answer="x", ideal_s=0.25, depth=None)),
    "costs": (COST_LINE, COSTS),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_fit_their_types_and_schemas(name: str) -> None:
    kind, line = LINES[name]
    schema = "costs" if kind is COST_LINE else "samples"
    jsonschema.validate(line, schemas()[f"{schema}.schema.json"])
    assert json.loads(json.dumps(kind.validate_json(json.dumps(line)))) == line
    for change in ({"more": 1}, {"doc_id": "first"}, {"task": None}):
        with pytest.raises(ValidationError):
            kind.validate_json(json.dumps(line | change))


def test_published_runs_of_older_schemas_can_be_read() -> None:
    """Records without the newer sections, and documents that hold their idealized seconds themselves."""
    folders = sorted((ROOT / "leaderboard" / "data").glob("*/"))
    assert folders
    for folder in folders:
        RunRecord.model_validate_json((folder / "record.json").read_bytes())
        with gzip.open(folder / "samples.jsonl.gz") as file:
            assert SAMPLE_LINE.validate_json(next(file))["scores"]


def test_a_record_fits_the_schema(validator: Any) -> None:
    validator.validate(written())
    validator.validate(
        written(baseline={"run_id": "a" * 12, "documents": 2, "ratios": {"flops": {"value": 0.5}}}, warnings=["w"])
    )


def test_a_record_comes_back_as_it_was() -> None:
    record = RunRecord.model_validate(record_json())
    assert RunRecord.model_validate_json(record.model_dump_json()) == record


SECTIONS = ("method", "model", "evaluation", "environment", "trace", "flops", "memory")


@pytest.mark.parametrize("section", [None, *SECTIONS])
def test_an_extra_field_is_refused(section: str | None, validator: Any) -> None:
    record = written()
    (record[section] if section else record)["extra"] = 1
    assert not validator.is_valid(record)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        RunRecord.model_validate(record)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_is_refused(section: str, validator: Any) -> None:
    record = written()
    del record[section]
    assert not validator.is_valid(record)
    with pytest.raises(ValidationError, match="Field required"):
        RunRecord.model_validate(record)


@pytest.mark.parametrize(
    "change",
    [{"schema_version": 1}, {"id": "0123456789AB"}, {"id": "../../../etc"}, {"time": 0}, {"energy": 0.0}],
)
def test_a_wrong_value_is_refused(change: dict[str, Any], validator: Any) -> None:
    record = written() | change
    assert not validator.is_valid(record)
    with pytest.raises(ValidationError):
        RunRecord.model_validate(record)


def test_a_number_that_json_does_not_have_is_null() -> None:
    score = record_json()["scores"][0]
    (stored,) = written(scores=[score | {"value": float("nan")}])["scores"]
    assert stored["value"] is None
