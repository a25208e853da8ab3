#!/usr/bin/env bash
# The project's own board: the built-in methods on the bundled model and its tasks, from this machine, in a clean checkout.
# Usage: leaderboard/own.sh [METHOD[:ARGS] ...]; without arguments, every method that `harness ls methods` lists, at its defaults.
# Runs already there are found by their id; a method that cannot run here says why, and the others go on.
set -euo pipefail
cd "$(dirname "$0")/.."
harness=${HARNESS:-.venv/bin/harness}
runs=${RUNS:-runs/own}
tasks=${TASKS:-pocket_choice pocket_math pocket_recall_generate pocket_text}
if [ $# -eq 0 ]; then
    mapfile -t methods < <("$harness" ls methods --json | python3 -c '
import json, sys
print(*(item["name"] for item in json.load(sys.stdin) if item["name"] != "dense" and item["from"] == "built in"), sep="\n")')
else
    methods=("$@")
fi
for task in $tasks; do
    for method in "${methods[@]}"; do
        # rows of some methods meet in a batch: the same size for all keeps them comparable
        "$harness" run --method "$method" --task "$task" --batch_size "${BATCH:-1}" -o "$runs" \
            || echo "left out: $method on $task" >&2
    done
done
for run in "$runs"/*/record.json; do
    id=$(basename "$(dirname "$run")")
    id=${id##*_}
    [ -d "leaderboard/data/$id" ] || "$harness" submit "$id" --results "$runs" || echo "not submitted: $id" >&2
done
"$harness" validate leaderboard/data
"$harness" site build --results leaderboard/data -o site
