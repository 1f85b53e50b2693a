#include "select.h"

#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sched.h>
#else
#include <thread>
#endif

namespace onnxq {
namespace {

#if defined(ONNXQ_X86)
bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool runs_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

bool runs_vbmi() {
  return runs_avx512() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined(ONNXQ_AVX_VNNI)
bool runs_avxvnni() { return runs_avx2() && __builtin_cpu_supports("avxvnni"); }
#endif

struct Candidate {
  const Kernels* kernels;
  bool (*runs)();
};

constexpr Candidate kCandidates[] = {
#if defined(ONNXQ_X86)
    {&kVbmiKernels, runs_vbmi},
    {&kAvx512Kernels, runs_avx512},
#if defined(ONNXQ_AVX_VNNI)
    {&kAvxVnniKernels, runs_avxvnni},
#endif
    {&kAvx2Kernels, runs_avx2},
#endif
    {&kPlainKernels, [] { return true; }},
};

}  // namespace

const Kernels* select_kernels() {
  const char* wanted = getenv(kIsaVariable);
  for (const Candidate& candidate : kCandidates) {
    if (!candidate.runs()) continue;
    if (!wanted || !*wanted || strcmp(wanted, candidate.kernels->name) == 0) return candidate.kernels;
  }
  return nullptr;
}

const char* runnable_kernels() {
  static char names[64];  // the same bytes whoever writes them
  size_t end = 0;
  for (const Candidate& candidate : kCandidates) {
    if (!candidate.runs()) continue;
    if (end) end += static_cast<size_t>(strlen(strcpy(names + end, ", ")));
    end += strlen(strcpy(names + end, candidate.kernels->name));
  }
  return names;
}

int cpu_count() {
#if defined(__linux__)
  cpu_set_t cpus;
  const int count = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
#else
  const int count = static_cast<int>(std::thread::hardware_concurrency());
#endif
  return count > 0 ? count : 1;
}

}  // namespace onnxq
