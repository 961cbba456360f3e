#!/usr/bin/env bash
# Check and measure everything on a GPU, part by part: tests, benchmarks, training and profiles.
#
#     benchmarks/gpu.sh OUT [PART...]        default: parts in the order below
#
#   check      the versions, and every package that is missing
#   tests      the kernel and engine tests, compiled, in several processes
#   train      tiny teaches itself from 6 to 29 digits on the GPU
#   base_train base learns 6 digits with true answers on the GPU
#   train_bf16 training steps of tiny and base in float32 and bfloat16: speed, memory, and the loss beside the CPU's
#   train_tiny_text training steps of text-tiny with CUDA graphs and without: speed, and the loss beside the CPU's
#   text_train text-tiny teaches itself from 6 to 29 digits; the part text takes it. Not among the default parts
#   train_text training steps of the shape of SmolLM2-135M with each setting that saves memory: speed and memory
#   pretrained SmolLM2-135M, or another model at PRETRAINED, teaches itself from 3 digits on by examples/smollm2.toml,
#              for 8 minutes; called again with the same STATE it goes on. Not among the default parts
#   kernels    each kernel by itself, and the limits of the hardware
#   tiny       the improved policy with the preset tiny: dtypes and counts of rows
#   verify     the same with first passes in one launch each, beside the kernels of `tiny`
#   hf         the same with `generate` of transformers
#   base       as tiny, with the preset base
#   vllm       vLLM beside the native engine and `hf`, where it is installed
#   text       a model of text in STATE/text: the native engine and `hf`
#   profile    time of generating by operation
#   ncu        Nsight Compute on the kernels of a step
#
# It is made for a bare machine, on which nothing can be installed: Python with torch and triton that see the GPU,
# transformers, pytest with xdist. The parts from `kernels` on need a trained checkpoint in STATE/tiny or
# STATE/base, which `train` and `base_train` make. Without STATE/tiny they take tests/data/taught, which has learned 29
# digits; a base (28 MB in bfloat16) does not come with the source: `base_train` takes a minute on a GPU.
# GPU time is rented in short slices, so each part has a time limit, and writes what it has as it goes. OUT gets few files:
# log.txt, cells.jsonl (a line a cell), tests.xml, run_*.jsonl (metrics of runs), vllm.json, text.json. The exit code is
# the number of parts that failed.
#
# Environment: PYTHON (default python3), STATE (checkpoints, default build/gpu, in a rehearsal build/gpu_rehearsal),
# PRETRAINED (a folder with safetensors or a GGUF file; without it the part `pretrained` takes random weights of the shape
# of SmolLM2-135M, which show speed and memory), SECTOR_COMMIT (the commit, where git cannot tell it), REHEARSE (if set:
# without a GPU, a few rows on the CPU, tests only collected, runs of a few steps).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -gt 0 ] || { sed -n '2,/^set /p' "${BASH_SOURCE[0]}" | sed '$d;s/^# \{0,1\}//'; exit 2; }

PYTHON=${PYTHON:-python3}
STATE=${STATE:-build/gpu${REHEARSE:+_rehearsal}}
out=$1
shift
default=(check tests train base_train train_bf16 train_tiny_text train_text kernels tiny verify hf base vllm text profile ncu)
[ $# -gt 0 ] || set -- "${default[@]}"
# Before the first part, which may take minutes of a rented GPU.
for part in "$@"; do
  case " ${default[*]} text_train pretrained " in
    *" $part "*) ;;
    *) echo "gpu.sh: there is no part '$part'; without arguments it lists them" >&2 && exit 2 ;;
  esac
done
for folder in "$out" "$STATE"; do
  mkdir -p "$folder" 2>/dev/null && [ -w "$folder" ] && continue
  echo "gpu.sh: cannot write to $folder; choose another folder" >&2 && exit 2
done
tiny=$STATE/tiny
[ -e "$tiny" ] || tiny=tests/data/taught
# Arguments that a rehearsal adds.
small_cells=() small_steps=() small_steps_text=() small_text=() small_shape=() small_run=() collect=() rehearse=()
small_bench=(--count 250)
if [ -n "${REHEARSE-}" ]; then
  small_cells=(--rows 8 --digits 6 --compare 8 --repeats 1) collect=(--collect-only) rehearse=(--rehearse)
  small_steps=(--presets tiny --rows 2 --digits 6 --steps 2 --compare 3) small_bench=(--count 4 --digits 6)
  small_steps_text=(--presets text-tiny)
  small_text=(--shape rehearsal --rows 2 --digits 3 --steps 1) small_shape=(--shape rehearsal)
  # The supervised phase alone: a few steps teach nothing that a round could accept.
  small_run=(--until 3)
  for setting in supervised.{cycle_steps=2,max_cycles=1,examples=8,trainer.shard_rows=2} round.probe=2 audit_samples=2; do
    small_run+=(--set "$setting")
  done
fi

# The folders of this checkout as the package, whatever is installed, and without make.
types=build/types/sector
mkdir -p $types
for file in sector/*; do ln -sfn "../../../$file" "$types/${file##*/}"; done
for name in engine kernels cli benchmarks; do ln -sfn "../../../$name" "$types/$name"; done
export PYTHONPATH=$PWD/build/types${PYTHONPATH:+:$PYTHONPATH}
# Not this folder itself: the folder `sector` in it is a part of the package only.
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
failed=0

# run_part NAME SECONDS COMMAND...: run it, append what it prints to the log, and say how it went.
run_part() {
  local name=$1 limit=$2 start=$SECONDS code
  shift 2
  printf '\n==== %s: %s\n' "$name" "$*" >>"$out/log.txt"
  timeout -k 10 "$limit" "$@" >>"$out/log.txt" 2>&1
  code=$?
  case $code in
    0) echo "ok      $name ($((SECONDS - start)) s)" ;;
    124 | 137) echo "cut off $name, after $limit s" && failed=$((failed + 1)) ;;
    *) echo "FAILED  $name ($((SECONDS - start)) s, exit $code): see log.txt" && failed=$((failed + 1)) ;;
  esac
}
sector=("$PYTHON" -m sector.cli.app)
# lines NAME SECONDS MODULE ARGUMENTS...: run a module of benchmarks, and append the lines that it prints.
lines() {
  local name=$1 limit=$2
  shift 2
  run_part "$name" "$limit" bash -c '"$0" -m "sector.benchmarks.$2" "${@:3}" | tee -a "$1"; exit ${PIPESTATUS[0]}' \
    "$PYTHON" "$out/cells.jsonl" "$@"
}
# cells NAME SECONDS MODEL ARGUMENTS...: measure cells, and append their lines.
cells() { lines "$1" "$2" gpu_cells "${@:3}" "${small_cells[@]}"; }
# bench NAME SECONDS MODEL ENGINES DIGITS: measure engines by `sector bench`, whose record is NAME.json.
bench() {
  run_part "$1" "$2" "${sector[@]}" bench --model "$3" --engine "$4" --digits "$5" "${small_bench[@]}" --repeats 1 \
    --out "$out/$1.json"
}
# train NAME SECONDS ARGUMENTS...: a run, whose best checkpoint is kept.
train() {
  local name=$1 limit=$2 run=$STATE/run_$1
  shift 2
  run_part "train_$name" "$limit" "${sector[@]}" run --out "$run" --json "$@" "${small_run[@]}"
  cp "$run/metrics.jsonl" "$out/run_$name.jsonl" 2>/dev/null
  if [ -e "$run/checkpoints/best" ]; then
    rm -rf "${STATE:?}/$name"
    cp -rL "$run/checkpoints/best" "$STATE/$name"
  fi
}

for part in "$@"; do
  case $part in
    check)
      # Without what it needs no other part can run.
      "$PYTHON" -m sector.benchmarks.gpu_check "${rehearse[@]}" | tee -a "$out/log.txt"
      [ "${PIPESTATUS[0]}" = 0 ] || exit 2
      ;;
    tests)
      # On a machine without a GPU no test has the mark `gpu`; a rehearsal collects all of these files.
      [ -n "${REHEARSE-}" ] || collect=(-m gpu -n 8)
      run_part tests 120 "$PYTHON" -m pytest "${collect[@]}" --import-mode=importlib -q -p no:cacheprovider \
        --junitxml "$out/tests.xml" tests/test_{philox,token_table,triton_support,digit_sampler,decode_attention,pass_attention,acceptance,embedding}.py \
        tests/test_{layer_kernels,consistency,kernel_layout,megakernel,verify,sequences,gpu,improve,training_graphs,precision,text_steps}.py
      ;;
    kernels)
      for model in "$tiny" "$STATE/base"; do
        [ -e "$model" ] && cells "kernels_${model##*/}" 60 "$model" --kernels --rows 4096
      done
      ;;
    tiny) cells tiny 90 "$tiny" --decode kernels ;;
    verify) cells verify 90 "$tiny" --decode kernels,verify --rows 1000,4000,16000 ;;
    hf) cells hf 90 "$tiny" --decode hf,auto --dtypes float32 --rows 1000 --repeats 1 ;;
    train) train tiny 75 --until 29 ;;
    base_train) train base 240 --preset base --until 6 ;;
    train_bf16) lines train_bf16 150 train_cells --compare 20 "${small_steps[@]}" ;;
    train_tiny_text)
      lines train_tiny_text 90 train_cells --presets text-tiny --precisions float32 --ways graphs,eager --digits 6,20 \
        --compare 20 "${small_steps[@]}" "${small_steps_text[@]}"
      ;;
    text_train) train text 900 --preset text-tiny --until 29 ;;
    pretrained)
      start=${PRETRAINED:-$STATE/random}
      [ -n "${PRETRAINED-}" ] || run_part random 120 "$PYTHON" -m sector.benchmarks.random_model "$start" "${small_shape[@]}"
      engine=(--engine native)
      [ -z "${REHEARSE-}" ] && "$PYTHON" -c 'import vllm' 2>/dev/null && engine=()
      train pretrained 480 --config examples/smollm2.toml --pretrained "$start" "${engine[@]}"
      ;;
    train_text) lines train_text 240 text_cells "${small_text[@]}" ;;
    base) cells base 150 "$STATE/base" --rows 1000,4000 --compare 100 ;;
    vllm)
      # Starting takes half a minute: imports, compilation and capture.
      if "$PYTHON" -c 'import vllm' 2>/dev/null; then
        bench vllm 180 "$tiny" native,vllm,hf 20
      else
        echo "skipped vllm, which is not installed"
      fi
      ;;
    text) if [ -e "$STATE/text" ]; then bench text 120 "$STATE/text" native,hf 12; fi ;;
    profile)
      for rows in 250 4000; do
        run_part "profile_generate_$rows" 90 "${sector[@]}" profile generate --model "$tiny" --digits 20 \
          --count $rows --out "$STATE/profile_generate_$rows"
      done
      ;;
    ncu)
      run_part ncu 120 ncu --clock-control none --set full --launch-skip 400 --launch-count 6 \
        --kernel-name 'regex:_decode_attention_kernel|_digit_sampler_kernel|_complete_kernel' \
        "$PYTHON" -m sector.benchmarks.gpu_cells "$tiny" --rows 4000 --compare 0 --repeats 1
      ;;
  esac
done
echo "results in $out"
exit $failed
