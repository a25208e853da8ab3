#!/usr/bin/env bash
# Fill a folder with all that a machine with a GPU and no package index needs: there, `bash run.sh` does the rest.
#
# Usage, in a clean checkout: tests/benchmarks/gpu_pack.sh OUT [FOLDER ...]
#   OUT       the folder to fill: run.sh, main.tar.gz (the committed tree), wheels.tar, extra.tar.*; about 57 MB without
#             extras. Files above 48 MiB are split, so that each can be carried alone; SHA256SUMS is checked there.
#   FOLDER    more to take along, found there under extra/NAME. For rows of the board: the folder gguf of the harness's
#             cache, after `harness fetch --model smollm2-135m`, and a prepared hub cache that is named hub.
#   PYTHON_VERSION=3.12   the Python there.     PLATFORM=x86_64   or aarch64.
#
# It is taken for granted there: torch with CUDA, and what comes with it or is large (numpy, scipy, pandas, pyarrow,
# matplotlib, tokenizers, safetensors, accelerate, peft, scikit-learn, psutil). The rest is in the list below, in the
# versions of constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -ge 1 ] || { sed -n '4,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd) python=${PYTHON:-python3} version=${PYTHON_VERSION:-3.12} machine=${PLATFORM:-x86_64}
shift
names="annotated-doc annotated-types arrow Authlib cffi chardet codecarbon cryptography DataProperty datasets defusedxml
dill evaluate execnet fsspec gguf hf-xet huggingface_hub iniconfig joserfc jsonschema jsonschema-specifications mbstrdecoder
more-itertools multiprocess nltk nvidia-ml-py pathvalidate platformdirs pluggy pycountry pycparser pydantic
pydantic_core pytablewriter pytest pytest-xdist pytz questionary prompt_toolkit RapidFuzz referencing regex rich rpds-py
sacrebleu setuptools tabledata tcolorpy tokenizers transformers typepy typer typing-inspection typing_extensions tzdata
wcwidth xxhash"
built="rouge_score sqlitedict word2number" # no wheels of these are published
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pinned() { # the lines of constraints.txt for these names
    local name
    for name in "$@"; do
        grep -i "^${name}==" constraints.txt || { echo "constraints.txt does not pin $name" >&2; return 1; }
    done
}
# shellcheck disable=SC2086
pinned $names >"$work/wheels.txt"
# shellcheck disable=SC2086
pinned $built >"$work/built.txt"
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux_2_5 manylinux1; do
    platforms+=(--platform "${tag}_$machine")
done
mkdir "$work/wheels"
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    "${platforms[@]}" --dest "$work/wheels" --requirement "$work/wheels.txt"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/wheels" --requirement "$work/built.txt"
rm -f "$out"/main.tar.gz "$out"/wheels.tar* "$out"/extra.tar* "$out"/SHA256SUMS
git archive HEAD | gzip -9 >"$out/main.tar.gz"
tar cf "$out/wheels.tar" -C "$work" wheels
if [ $# -gt 0 ]; then
    mkdir "$work/extra"
    for folder; do cp -rL "$folder" "$work/extra/$(basename "$folder")"; done
    tar cf "$out/extra.tar" -C "$work" extra
fi
cp tests/benchmarks/gpu_run.sh "$out/run.sh"
for file in "$out"/*.tar; do
    [ "$(stat -c %s "$file")" -le $((48 * 2 ** 20)) ] || { split -b 48M -d "$file" "$file." && rm "$file"; }
done
(cd "$out" && sha256sum -- *.tar* run.sh >SHA256SUMS && ls -l)
