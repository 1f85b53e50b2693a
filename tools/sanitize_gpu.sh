#!/usr/bin/env bash
# Runs tests of the GPU kernels under compute-sanitizer: out-of-bounds and misaligned accesses, then races in shared memory.
#
#     tools/sanitize_gpu.sh [pytest arguments]      (by default: all tests of the kernels)
#
# Needs an H100 or H200, CUDA's compute-sanitizer, and an environment with onnxq's gpu and test extras. PROCESSES (4) share the
# tests, each under a compute-sanitizer of its own, whose ten ports would be too few for as many workers of pytest-xdist. Only
# onnxq's kernels are watched: what CuPy and onnxruntime launch takes its normal time. Run the tests once before: kernels that CuPy
# has compiled lie on disk then. TOOLS (memcheck racecheck) names what to run; what each process said stays in LOGS.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${LOGS:-$(mktemp -d)}
mkdir -p "$folder"
run=(python3 -m pytest -q -p no:cacheprovider -m gpu -n 0)
watched=()
for kernel in matmul_stream matmul_tile split_float32 sum_pieces gate_pieces look_up; do
  watched+=(--kernel-name "kernel_substring=$kernel")
done
"${run[@]}" --collect-only "${@:-tests/runtime/cuda/test_kernels.py}" | grep :: >"$folder/tests"
split -d -n "r/${PROCESSES:-4}" "$folder/tests" "$folder/part."
failed=0
for tool in ${TOOLS:-memcheck racecheck}; do
  running=() port=49152
  for part in "$folder"/part.??; do
    compute-sanitizer --tool "$tool" --port "$port" "${watched[@]}" --error-exitcode 9 "${run[@]}" "@$part" >"$part.$tool" 2>&1 &
    running+=($!)
    port=$((port + 16))
  done
  for job in "${running[@]}"; do
    wait "$job" || failed=1
  done
  tail -n 4 "$folder"/part.*."$tool"
done
exit "$failed"
