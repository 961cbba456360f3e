#!/usr/bin/env bash
# Checks and measures everything on whatever GPU this machine has: GPU tests, benchmarks, profiles, one folder of results.
#
#     benchmarks/gpu.sh [OUT]        default: benchmarks/results/DATE_GPU
#
# Needs Python with torch and triton that see the GPU. The other dependencies are installed if there is an index; what is
# installed already is used as it is. Every part runs even if one before it failed, and its output is kept; the exit code
# is the number of parts that failed. TRAIN_DIGITS (default 12) is how far the checkpoint is trained that is measured.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
TRAIN_DIGITS=${TRAIN_DIGITS:-12}
"$PYTHON" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || {
  echo "gpu.sh: $PYTHON has no torch that sees a GPU; set PYTHON to one that has" >&2
  exit 2
}
"$PYTHON" -c 'import pydantic, tomli_w, filelock, typer, rich, pyarrow, matplotlib, scipy, transformers, pytest' 2>/dev/null ||
  "$PYTHON" -m pip install --quiet '.[dev]' || {
    echo "gpu.sh: dependencies are missing and cannot be installed; see pyproject.toml" >&2
    exit 2
  }
# The folders of this checkout as the package, whatever is installed.
make --no-print-directory types
export PYTHONPATH=$PWD/build/types${PYTHONPATH:+:$PYTHONPATH}
# Not this folder itself: the folder `sector` in it is a part of the package only.
export PYTHONSAFEPATH=1

gpu=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))')
out=${1:-benchmarks/results/$(date -u +%F)_$gpu}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# part NAME COMMAND...: runs it, keeps what it prints, says how it went.
part() {
  local name=$1 start=$SECONDS
  shift
  if "$@" >"$out/$name.txt" 2>&1; then
    echo "ok      $name ($((SECONDS - start)) s)"
  else
    echo "FAILED  $name ($((SECONDS - start)) s): see $out/$name.txt"
    failed=$((failed + 1))
  fi
}
sector() { "$PYTHON" -m sector.cli.app "$@"; }

part tests "$PYTHON" -m pytest -m gpu --import-mode=importlib -q
part train sector run --out "$work/tiny" --until "$TRAIN_DIGITS"
part fresh "$PYTHON" -m sector.benchmarks.fresh base "$work/base"
for dtype in float32 bfloat16; do
  # Side by side with hf, then alone where hf would take an hour.
  part "bench_tiny_$dtype" sector bench --model "$work/tiny" --engine native,hf --dtype $dtype \
    --digits 8,16,29,64 --batch 1000 --count 1000 --out "$out/bench_tiny_$dtype.json"
  part "bench_tiny_large_$dtype" sector bench --model "$work/tiny" --engine native --savings --kernels --dtype $dtype \
    --digits 8,16,29,64 --batch 4000,32000 --count 32000 --out "$out/bench_tiny_large_$dtype.json"
  part "bench_base_$dtype" sector bench --model "$work/base" --engine native,hf --savings --kernels --dtype $dtype \
    --filter none --digits 20 --batch 4000 --count 4000 --out "$out/bench_base_$dtype.json"
done
part bench_training sector bench --model "$work/tiny" --engine native --training --digits 20 --count 1000 \
  --out "$out/bench_training.json"
part profile_generate sector profile generate --model "$work/tiny" --digits 20 --count 4000 --out "$out/profile_generate"
part profile_distill sector profile distill --model "$work/tiny" \
  --data "$work/tiny/rounds/$(printf %02d "$TRAIN_DIGITS")/examples.parquet" --out "$out/profile_distill"
# Traces are large; the figures read from them are in the text.
rm -f "$out"/profile_*/*-trace.json
cp "$work/tiny/metrics.jsonl" "$out/metrics_tiny.jsonl" 2>/dev/null
echo "results in $out"
exit $failed
