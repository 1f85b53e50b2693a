// Which kernels this CPU can run.
#pragma once

#include "kernels.h"

namespace onnxq {

// The fastest, or those that the environment variable ONNXQ_CPU_ISA names; null where it names none that can run here.
const Kernels* select_kernels();

// Names of all that can run here, fastest first, separated by ", ".
const char* runnable_kernels();

// How many CPUs this process may use.
int cpu_count();

constexpr char kIsaVariable[] = "ONNXQ_CPU_ISA";

}  // namespace onnxq
