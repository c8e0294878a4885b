#!/usr/bin/env bash
# Holds everything against a Hopper GPU, one stage per call: ends with a short table, writes the rest to the output folder.
#
#   benchmarks/gpu/run.sh [-o FOLDER] [-t SECONDS] STAGE...
#
# build     compile what this Python cannot import yet: seekernel._C (needs nvcc), seekernel._jit (needs g++, pybind11)
# truth     import, `seekernel info`, every test that takes a GPU
# sanitize  compute-sanitizer memcheck and racecheck over one case per kernel
# ceilings  copy bandwidth, bf16 and fp8 matrix rates
# gemm grouped bmm mla_decode mla_prefill mla_fused moe fused sampling jit model   one benchmark each
# Each stage runs under its own time limit (-t, 240 s by default), and a stage that fails does not stop the next.
set -u
cd "$(dirname "$0")/../.."
out=${OUT:-build/gpu}
limit=240
while getopts "o:t:" flag; do
  case $flag in
    o) out=$OPTARG ;;
    t) limit=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$out"
python=${PYTHON:-python3}
export PYTHONPATH="$PWD/build/gpu-package${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export NCCL_NVLS_ENABLE=0 TRTLLM_DG_CACHE_DIR="${TRTLLM_DG_CACHE_DIR:-$PWD/build/gpu-jit}"

# A package folder of links, so that nothing needs to be installed.
link_package() {
  local root=build/gpu-package/seekernel
  mkdir -p "$root"
  for path in python/seekernel/*; do ln -sfn "$PWD/$path" "$root/$(basename "$path")"; done
  for name in csrc jit model; do ln -sfn "$PWD/$name" "$root/$name"; done
}

build() {
  link_package
  "$python" -c 'import torch, seekernel._C' 2>/dev/null || build_all=1
  "$python" -c 'import seekernel._jit' 2>/dev/null || build_jit=1
  if [ "${build_all:-}" ]; then
    MAX_JOBS=$(nproc) "$python" setup.py -q build_ext --inplace && link_package
  elif [ "${build_jit:-}" ]; then
    local flags suffix
    flags=$("$python" -m pybind11 --includes) || return 1
    suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
    mkdir -p build/gpu-objects
    printf '%s\n' csrc/jit/*.cpp csrc/driver/*.cpp csrc/heuristics/*.cpp $(ls csrc/launch/*.cpp 2>/dev/null) |
      xargs -P "$(nproc)" -I{} sh -c "g++ -std=c++20 -O3 -fPIC -fvisibility=hidden -Icsrc -Icsrc/include $flags -c {} -o build/gpu-objects/\$(echo {} | tr / _).o" &&
      g++ -shared build/gpu-objects/*.o -ldl -o "python/seekernel/_jit$suffix" && link_package
  fi
  "$python" -c 'import torch, seekernel._C, seekernel._jit; print("extensions import")'
}

# A process per test file: a kernel that faults takes the context of its process with it.
one_test_file() {
  local log
  mkdir -p "$out/tests"
  log=$out/tests/$(basename "$1" .py).log
  "$python" -m pytest -m "gpu and not multi_gpu" --timeout=120 -p no:cacheprovider -q --tb=short ${PYTEST_ARGS:-} "$1" >"$log" 2>&1
  local code=$?
  printf '%-52s %s, %d s\n' "$1" "$(tail -n 1 "$log")" $SECONDS
  [ $code = 0 ] || [ $code = 5 ] || { grep -E '^(FAILED|ERROR)' "$log" | head -n 8; return 1; }
}

truth() {
  "$python" -m seekernel info
  grep -rlE 'mark\.gpu|BACKENDS' --include='test_*.py' tests | grep -E "${TESTS:-.}" |
    xargs -P "${JOBS:-8}" -I{} bash -c 'one_test_file {}'
}

sanitize() {
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-name-exclude regex:at:: \
      "$python" -m pytest -m gpu -q --tb=line -p no:cacheprovider ${SANITIZE_ARGS:--k sanitize} tests || return 1
  done
}

ceilings() { "$python" -c 'from benchmarks.timing import describe_machine, roofs
print(describe_machine()); r = roofs("cuda")
print(f"copy {r.bytes_per_us / 1e6:.2f} TB/s, bf16 {r.bf16_flops_per_us / 1e6:.0f} TFLOPS, fp8 {r.fp8_flops_per_us / 1e6:.0f} TFLOPS")'; }

bench() { "$python" -m "benchmarks.bench_$1" --out "$out/$1.csv" ${BENCH_ARGS:-}; }

declare -A module=([gemm]=fp8_gemm [grouped]=grouped_gemm [bmm]=bmm [mla_decode]=mla_decode [mla_prefill]=mla_prefill
  [mla_fused]=mla_fused [moe]=moe [fused]=fused [sampling]=sampling [jit]=jit [model]=gpu_model)

status=0
link_package
for stage in "$@"; do
  printf '== %s\n' "$stage"
  began=$SECONDS
  case $stage in
    build | truth | sanitize | ceilings) command=$stage ;;
    *)
      [ "${module[$stage]:-}" ] || { echo "no stage $stage"; exit 2; }
      command="bench ${module[$stage]}"
      ;;
  esac
  export -f build link_package one_test_file truth sanitize ceilings bench
  export out python build_all build_jit
  timeout -k 5 "$limit" bash -c "$command" >"$out/$stage.log" 2>&1
  code=$?
  tail -n "${TAIL:-25}" "$out/$stage.log"
  printf '== %s: exit %d, %d s\n' "$stage" "$code" $((SECONDS - began))
  [ "$code" = 0 ] || status=1
done
# One file, because what carries the results home may count files.
tar -C "$out" -czf "$out/logs.tgz" --exclude=logs.tgz . 2>/dev/null || true
exit $status
