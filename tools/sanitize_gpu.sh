#!/usr/bin/env bash
# Runs tests of the GPU kernels under compute-sanitizer: out-of-bounds and misaligned accesses, then races in shared memory.
#
#     tools/sanitize_gpu.sh [pytest arguments]      (by default: some of every kind)
#
# Needs an H100 or H200, CUDA's compute-sanitizer, and an environment with onnxq's gpu and test extras. Takes minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

tests=("${@:-tests/runtime/cuda/test_kernels.py}")
[ $# -gt 0 ] || tests+=(-k "test_zero_points or test_results_can or test_tiles_in_steps or geometry0")
run=(python3 -m pytest -q -p no:cacheprovider -m gpu "${tests[@]}")
"${run[@]}" # compiles the kernels
compute-sanitizer --tool memcheck --error-exitcode 9 "${run[@]}"
compute-sanitizer --tool racecheck --error-exitcode 9 "${run[@]}"
