"""The JSON Schemas of results, as they are checked in: ``python -m harness.results.schemas`` writes them again."""

import json
from pathlib import Path
from typing import Any

from harness.results.cost_lines import COST_LINE
from harness.results.record import RunRecord
from harness.results.samples import SAMPLE_LINE

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, dict[str, Any]]:
    """The schema of a record, and of a line of each other file, by the name of its file in this folder."""
    shapes = {
        "record": RunRecord.model_json_schema(),
        "samples": SAMPLE_LINE.json_schema(),
        "costs": COST_LINE.json_schema(),
    }
    return {f"{name}.schema.json": {"$schema": _DRAFT, **shape} for name, shape in shapes.items()}


if __name__ == "__main__":
    for file_name, schema in schemas().items():
        Path(__file__).with_name(file_name).write_text(json.dumps(schema, indent=2) + "\n")
