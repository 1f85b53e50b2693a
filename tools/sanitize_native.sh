#!/usr/bin/env bash
# Runs the tests of the native kernels against a build with AddressSanitizer and UndefinedBehaviorSanitizer.
#
#     tools/sanitize_native.sh [pytest arguments]
#
# Needs a C++ compiler, cmake, and an environment with onnxq's test extra. Takes a few minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

build=build/sanitized
cmake -S custom_ops -B "$build" -DONNXQ_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug >/dev/null
cmake --build "$build" --parallel

export ONNXQ_NATIVE_LIBRARY="$PWD/$build/onnxq_native.so" PYTHONPATH="$PWD"
# Python and onnxruntime are not built for it, so the runtime comes first; what Python leaves at exit is no leak of ours.
runtime=$(${CXX:-c++} -print-file-name=libasan.so)
undefined=$(${CXX:-c++} -print-file-name=libubsan.so)
exec env LD_PRELOAD="$runtime:$undefined" \
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:handle_segv=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
    python -m pytest -q -p no:cacheprovider tests/native \
    --deselect tests/native/test_library.py::test_the_library_needs_only_the_c_library "$@"
