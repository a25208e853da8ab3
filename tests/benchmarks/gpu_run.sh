#!/usr/bin/env bash
# On a machine with a GPU and no package index, in the folder that gpu_pack.sh filled: bash run.sh
#
# In the order of their value, each with a limit of its own; nothing is begun with less than 15 s left of MINUTES:
#   unpack       40 s   a virtual environment on the machine's own packages, the carried wheels over them
#   doctor       30 s   log/doctor.txt   what this machine can do
#   suite       240 s   suite.json       every job and method on the card, four processes side by side
#   benchmark   480 s   benchmark.json   what compression saves, alone on the machine
#   board       the rest   board/        SmolLM2-135M rows in bfloat16, if extra/gguf and extra/hub were packed
# Results are in OUT (results/ here), whole at any time; the same command again goes on with what is not done.
#   MINUTES=14   STEPS="doctor suite benchmark board"   DEVICE=cuda:0   PYTHON=python3
#   LIMIT=small  tries all of it on a CPU, on tiny shapes: DEVICE=cpu, and a few tests of the suite
#   VENV         a virtual environment that is there already
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
began=$(date +%s) minutes=${MINUTES:-14} steps=${STEPS:-doctor suite benchmark board} limit=${LIMIT:-}
out=${OUT:-$here/results} work=${WORK:-$here/work} python=${PYTHON:-python3}
device=${DEVICE:-$([ "$limit" = small ] && echo cpu || echo cuda:0)}
mkdir -p "$out/log" "$work"
out=$(cd "$out" && pwd) work=$(cd "$work" && pwd) venv=${VENV:-$work/venv}
end=$((began + $(awk -v minutes="$minutes" 'BEGIN { printf "%d", minutes * 60 }')))

if [ ! -e "$work/ready" ]; then
    (cd "$here" && sha256sum --check --quiet SHA256SUMS) || { echo "the folder is not whole: copy it again" >&2; exit 1; }
    for archive in wheels extra; do
        set -- "$here/$archive".tar*
        [ ! -e "$1" ] || cat "$@" | tar x -C "$work" || exit 1
    done
    mkdir -p "$work/main" && tar xzf "$here/main.tar.gz" -C "$work/main" || exit 1
    [ -x "$venv/bin/python" ] || "$python" -m venv --system-site-packages "$venv" || exit 1
    "$venv/bin/python" -m pip install --quiet --no-index --no-deps --find-links "$work/wheels" "$work"/wheels/*.whl &&
        "$venv/bin/python" -m pip install --quiet --no-index --no-deps --no-build-isolation --editable "$work/main" || exit 1
    touch "$work/ready"
fi
export HARNESS_CACHE=$work/cache HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false COLUMNS=160 PATH=$venv/bin:$PATH
[ ! -d "$work/extra/hub" ] || export HF_HOME=$work/extra/hub
[ "$device" != cpu ] || export OMP_NUM_THREADS=1
cd "$work/main" || exit 1

step() { # NAME SECONDS COMMAND...: its output goes to log/NAME.txt, what it came to to steps.tsv
    local name=$1 seconds=$2 left start code
    shift 2
    [[ " $steps " == *" $name "* ]] || return 0
    ! grep -qs "^$name	0	" "$out/steps.tsv" || return 0
    start=$(date +%s) left=$((end - $(date +%s)))
    [ "$left" -ge 15 ] || { printf '%s\tno time left\t0\n' "$name" >>"$out/steps.tsv"; return 0; }
    timeout --signal INT --kill-after 5 "$((seconds < left ? seconds : left))" "$@" >"$out/log/$name.txt" 2>&1 </dev/null
    code=$?
    printf '%s\t%s\t%s\n' "$name" "$code" "$(($(date +%s) - start))" >>"$out/steps.tsv"
}

few=(-n 4) small=()
set --
[ "$limit" != small ] || { few=(-k "layer-drop or tiny_letters or flash") small=(--small); }
step doctor 30 harness doctor
step suite 240 python -m pytest -q -m gpu --device "$device" --outcomes "$out/suite.json" "${few[@]}" tests/gpu
step benchmark 480 python -m tests.benchmarks.gpu --device "$device" --out "$out/benchmark.json" "${small[@]}"
if [ -d "$work/extra/gguf" ] && [ -d "$work/extra/hub" ]; then
    mkdir -p "$HARNESS_CACHE" "$out/board/data"
    [ -e "$HARNESS_CACHE/gguf" ] || ln -s "$work/extra/gguf" "$HARNESS_CACHE/gguf"
    export HARNESS=harness RUNS=$out/board/runs DATA=$out/board/data
    [ "$limit" != small ] || { export TASKS=arc_easy_500 FLAGS="--limit 2" HARNESS_MEASURE=flops; set -- layer-drop:layers=3; }
    step board 600 bash leaderboard/own.sh --model smollm2-135m --device "$device" --dtype bfloat16 \
        --minutes "$(((end - $(date +%s)) / 60))" "$@"
fi

echo "== steps: name, exit code (124: stopped at its limit), seconds"
cat "$out/steps.tsv"
for name in doctor suite benchmark board; do
    [ ! -e "$out/log/$name.txt" ] || { echo "== $name" && tail -n 40 "$out/log/$name.txt"; }
done
echo "== $out after $(($(date +%s) - began)) s"
