#!/usr/bin/env bash
# The project's own board, from this machine, in a clean checkout: the built-in methods on the bundled model, or on another
# model and the tasks of leaderboard/tasks; each row is put into leaderboard/data when it is finished.
# Usage: leaderboard/own.sh [--model NAME] [--hours N | --minutes N] [--device DEVICE] [--dtype TYPE] [METHOD[:ARGS] ...]
# Without methods, all that are built in. With --hours or --minutes, a row is begun if the longest one of its kind so far
# would still fit in, and stopped at their end, an eighth of the minutes being left for the site. The same command again
# goes on where it stopped. HARNESS_MEASURE=flops takes the scores alone, on a machine that is not quiet; without it the
# costs are added. A row that cannot run says why, and the others go on.
#     leaderboard/own.sh --model smollm2-135m --device cuda:0 --dtype bfloat16 --minutes 8
# makes the rows of a GPU: the most valuable ones first, with all costs but energy, which takes a minute a row and is added
# by the same command with --hours. Dense comes with the first method on each task.
set -euo pipefail
cd "$(dirname "$0")/.."
model=pocket deadline='' device='' dtype=float32 minutes='' grace=60
while [[ ${1-} == --* ]]; do
    case $1 in
        --model) model=$2 ;;
        --hours) deadline=$(awk -v hours="$2" -v now="$(date +%s)" 'BEGIN { printf "%d", now + hours * 3600 }') ;;
        --minutes)
            minutes=$2 grace=15
            deadline=$(awk -v minutes="$2" -v now="$(date +%s)" 'BEGIN { printf "%d", now + minutes * 60 * 7 / 8 }') ;;
        --device) device=$2 ;;
        --dtype) dtype=$2 ;;
        *)
            echo "usage: leaderboard/own.sh [--model NAME] [--hours N | --minutes N] [--device DEVICE] [--dtype TYPE]" \
                "[METHOD[:ARGS] ...]" >&2
            exit 2 ;;
    esac
    shift 2
done
harness=${HARNESS:-.venv/bin/harness} runs=${RUNS:-runs/own} data=${DATA:-leaderboard/data}
if [ "$model" = pocket ]; then
    tasks=${TASKS:-pocket_choice pocket_math pocket_recall_generate pocket_text} methods=() batch=${BATCH:-1}
    loading=($([ "$dtype" = float32 ] || echo --model_args dtype="$dtype"))
else
    [ "$model" != smollm2 ] || model=smollm2-135m
    tasks=${TASKS:-arc_easy_500 lambada_openai_500 lambada_written_200} batch=${BATCH:-8}
    # a fifth of such a pass is too short to time prompts as long as the tasks'
    loading=(--model_args dtype="$dtype" --include_path leaderboard/tasks --cost_budget 240)
    methods=(dense layer-drop:unit={block,attention,mlp},count={3,6} static-path dr-llm int8-dynamic wanda calm)
fi
[ -z "$device" ] || loading+=(--device "$device")
if [ -n "$minutes" ]; then
    methods=(layer-drop:unit=block,count={6,3} int8-weight-only int4-weight-only fp8 layer-drop:unit={attention,mlp},count=6)
    export HARNESS_MEASURE=${HARNESS_MEASURE:-flops,ideal,latency,memory}
fi
mapfile -t others < <("$harness" ls methods --json | python3 -c '
import json, sys
named = {"dense", *(word.partition(":")[0] for word in sys.argv[1:])}
print(*(row["name"] for row in json.load(sys.stdin) if row["from"] == "built in" and row["name"] not in named), sep="\n")' "${methods[@]}")
methods+=("${others[@]}")
[ $# -eq 0 ] || methods=("$@")
mkdir -p "$runs"
touch "$runs/seconds" # seconds, kind, task, method of every row that was begun

submit() { # whatever is finished, costs included, and not published yet
    python3 -c '
import json, pathlib, sys
for record in pathlib.Path(sys.argv[1]).glob("*/record.json"):
    name = record.parent.name.rpartition("_")[2]
    if not (pathlib.Path(sys.argv[2]) / name).exists() and "latency" in json.loads(record.read_bytes())["measured"]:
        print(name)' "$runs" "$data" | while read -r id; do
        "$harness" submit "$id" --results "$runs" -o "$data" </dev/null || echo "not submitted: $id" >&2
    done
}

for method in "${methods[@]}"; do
    kind=$([[ $method =~ ^(static-path|dr-llm|polar) ]] && echo searched || echo plain)
    for task in $tasks; do
        began=$(date +%s)
        longest=$(awk -v row="$kind $task" '$2 " " $3 == row && $1 > most { most = $1 } END { print most + 0 }' "$runs/seconds")
        if [ -n "$deadline" ] && [ $((began + longest)) -ge "$deadline" ]; then
            echo "no time left for $method on $task, about $((longest / 60)) min" >&2
            continue
        fi
        # lambada has no training split: the official validation split of the same data stands in. Rows of some methods
        # meet in a batch: the same size for all keeps them comparable
        [[ $task == lambada* ]] && text=dataset:cimec/lambada,plain_text:validation:text || text=task
        OMP_NUM_THREADS=1 timeout --foreground -s INT -k "$grace" "$((${deadline:-$began} - began))" \
            "$harness" run --method "$method" --task "$task" --pretrained "$model" "${loading[@]}" --calibration "$text" \
            --batch_size "$batch" ${FLAGS-} -o "$runs" || echo "left out: $method on $task" >&2
        echo "$(($(date +%s) - began)) $kind $task $method" >>"$runs/seconds"
        submit
    done
done
"$harness" validate "$data"
"$harness" site build --results "$data" -o site
