#!/usr/bin/env bash
# Runs the tests of the GPU kernels under compute-sanitizer: out-of-bounds and misaligned accesses, then races in shared memory.
#
#     tools/sanitize_gpu.sh [pytest arguments]      (by default: all tests marked gpu)
#
# Needs an H100 or H200, CUDA's compute-sanitizer, and an environment with onnxq's gpu and test extras. Takes minutes on the
# PROCESSES (15) that share the tests. Only onnxq's own kernels are watched: what PyTorch, CuPy and onnxruntime launch takes its
# normal time.
set -euo pipefail
cd "$(dirname "$0")/.."

processes=${PROCESSES:-15}
run=(python3 -m pytest -q -p no:cacheprovider -m gpu -n "$processes" --maxprocesses "$processes" "${@:-tests/runtime}")
own=()
for kernel in matmul_stream matmul_tile split_float32 sum_pieces; do
  own+=(--kernel-name "kernel_substring=$kernel")
done
"${run[@]}" # compiles the kernels
for tool in memcheck racecheck; do
  compute-sanitizer --tool "$tool" "${own[@]}" --error-exitcode 9 "${run[@]}"
done
