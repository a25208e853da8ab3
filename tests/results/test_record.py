"""The schema of a record is checked in, and a record that leaves it is refused."""

import json
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from harness.results.record import RunRecord, json_schema
from tests.conftest import ROOT
from tests.toys import record_json

SCHEMA = ROOT / "harness" / "results" / "record.schema.json"


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def written(**changes: Any) -> dict[str, Any]:
    return json.loads(RunRecord.model_validate(record_json(**changes)).model_dump_json())


def test_the_schema_in_the_tree_is_that_of_the_code() -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema()


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
