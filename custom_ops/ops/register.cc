// All operators, and what the library exports.
#include <atomic>
#include <cstring>

#include "../cpu/select.h"
#include "tiled.h"

#if defined(_WIN32)
#define ONNXQ_EXPORT extern "C" __declspec(dllexport)
#else
#define ONNXQ_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace onnxq {
namespace {

constexpr char kDomain[] = "onnxq";
// Set in the options of a session that has the operators: onnxruntime fails later on a domain that is there twice.
constexpr char kRegistered[] = "onnxq.native";
// Asks for Dequantize operators too. Without them onnxruntime folds the function to a float weight when it loads; it
// never folds a kernel, so with them memory stays small and every run pays for decoding.
constexpr char kWithDequantize[] = "onnxq.native.dequantize";
// Lets products round activations to int8, where that is faster.
constexpr char kRounding[] = "onnxq.native.int8";
// Asks for the operators of a session on CUDA, instead of those of one on the CPU: there a product on the CPU would cost more
// than the function of the operator, folded to a float weight on the GPU.
constexpr char kForCuda[] = "onnxq.native.cuda";

const Operator& self(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

const char* get_name(const OrtCustomOp* op) { return self(op).name; }
const char* get_provider(const OrtCustomOp* op) {
  return self(op).is_tiled() ? "CUDAExecutionProvider" : "CPUExecutionProvider";
}
size_t get_input_count(const OrtCustomOp* op) { return self(op).input_count(); }
size_t get_output_count(const OrtCustomOp*) { return 1; }
int get_output_type(const OrtCustomOp* op, size_t) { return static_cast<int>(self(op).type); }
int get_required(const OrtCustomOp*, size_t) { return kRequired; }
int get_memory_type(const OrtCustomOp*, size_t) { return kMemoryDefault; }
int get_min_arity(const OrtCustomOp*) { return 1; }
int get_homogeneity(const OrtCustomOp*) { return 0; }
int get_start_version(const OrtCustomOp*) { return 1; }
int get_end_version(const OrtCustomOp*) { return 1; }

int get_input_type(const OrtCustomOp* op, size_t index) {
  const size_t packed = self(op).packed_index();
  const bool behind = index == self(op).weight_end();
  // Scales may be of another type than the result, and indices of two: any, checked by the kernel.
  if (index == packed + 1 || (behind && self(op).is_lookup())) return static_cast<int>(ElementType::kUndefined);
  return static_cast<int>(index < packed || behind ? self(op).type : ElementType::kUint8);
}

constexpr size_t append(char* to, size_t end, const char* text) {
  for (; *text; ++text) to[end++] = *text;
  return end;
}

constexpr Operator make(Family family, const Format& format, bool asymmetric, ElementType type, bool rounds) {
  Operator made{};
  made.family = family;
  const bool tiled = made.is_tiled();
  made.version = kOperatorVersion;
  made.GetName = get_name;
  made.GetExecutionProviderType = get_provider;
  made.GetInputType = get_input_type;
  made.GetInputTypeCount = get_input_count;
  made.GetOutputType = get_output_type;
  made.GetOutputTypeCount = get_output_count;
  made.KernelDestroy = destroy_kernel;
  made.GetInputCharacteristic = get_required;
  made.GetOutputCharacteristic = get_required;
  made.GetInputMemoryType = get_memory_type;
  made.GetVariadicInputMinArity = get_min_arity;
  made.GetVariadicInputHomogeneity = get_homogeneity;
  made.GetVariadicOutputMinArity = get_min_arity;
  made.GetVariadicOutputHomogeneity = get_homogeneity;
  made.CreateKernelV2 = tiled ? create_tiled : create_kernel;
  made.KernelComputeV2 = tiled ? compute_tiled : compute;
  made.InferOutputShapeFn = infer_shape;
  made.GetStartVersion = get_start_version;
  made.GetEndVersion = get_end_version;
  size_t end = append(made.name, 0,
                      family == Family::kDequantize ? "Dequantize"
                      : made.is_lookup()            ? "Gather"
                      : made.is_gated()             ? "SwiGLU"
                      : made.has_bias()             ? "Linear"
                                                    : "MatMul");
  end = append(made.name, end, format.name);
  end = append(made.name, end, tiled ? "Tiled" : "");
  append(made.name, end, asymmetric ? "Asymmetric" : "");
  made.asymmetric = asymmetric;
  made.rounds = rounds;
  made.type = type;
  made.format = &format;
  return made;
}

constexpr ElementType kTypes[] = {ElementType::kFloat, ElementType::kFloat16, ElementType::kBFloat16};

constexpr size_t count_operators(size_t formats) {
  size_t count = 0;
  for (size_t i = 0; i < formats; ++i) count += 3 * (kFormats[i].is_integer() ? 2 : 1);
  return count;
}

// All of one family, for the first so many formats.
template <Family kFamily, size_t kCount, bool kRounds = false>
struct Operators {
  Operator each[count_operators(kCount)];
  char names[4096];  // each once, one a line

  constexpr Operators() : each{}, names{} {
    size_t count = 0, end = 0;
    for (size_t i = 0; i < kCount; ++i) {
      for (int asymmetric = 0; asymmetric <= (kFormats[i].is_integer() ? 1 : 0); ++asymmetric) {
        for (ElementType type : kTypes) each[count++] = make(kFamily, kFormats[i], asymmetric, type, kRounds);
        end = append(names, append(names, end, each[count - 1].name), "\n");
      }
    }
  }
};

constexpr Operators<Family::kMatMul, kFormatCount> kMatMuls;
constexpr Operators<Family::kLinear, kFormatCount> kLinears;
constexpr Operators<Family::kMatMul, kFormatCount, true> kRoundingMatMuls;
constexpr Operators<Family::kLinear, kFormatCount, true> kRoundingLinears;
constexpr Operators<Family::kDequantize, kFormatCount> kDequantizes;
constexpr Operators<Family::kTiledMatMul, kTiledFormatCount> kTiledMatMuls;
constexpr Operators<Family::kTiledLinear, kTiledFormatCount> kTiledLinears;
constexpr Operators<Family::kTiledSwiGLU, kTiledFormatCount> kTiledSwiGLUs;
constexpr Operators<Family::kTiledGather, kTiledFormatCount> kTiledGathers;

std::atomic<OrtApi> g_table{nullptr};
// What a session asked for; the first two together as well.
enum Choice { kCpu = 0, kDequantizing = 1, kRoundingProducts = 2, kCuda = 4 };
std::atomic<OrtCustomOpDomain*> g_domains[kCuda + 1] = {};

template <class Operators>
OrtStatus* add_operators(const Api& api, const Operators& operators, OrtCustomOpDomain* domain) {
  for (const Operator& op : operators.each) ONNXQ_RETURN_IF_ERROR(api.add_operator(domain, &op));
  return nullptr;
}

// A domain outlives every session, so it is never released; all sessions share it.
OrtStatus* get_domain(const Api& api, int choice, OrtCustomOpDomain** domain) {
  std::atomic<OrtCustomOpDomain*>& kept = g_domains[choice];
  *domain = kept.load();
  if (*domain) return nullptr;
  ONNXQ_RETURN_IF_ERROR(api.create_domain(kDomain, domain));
  if (choice == kCuda) {
    ONNXQ_RETURN_IF_ERROR(add_operators(api, kTiledMatMuls, *domain));
    ONNXQ_RETURN_IF_ERROR(add_operators(api, kTiledLinears, *domain));
    ONNXQ_RETURN_IF_ERROR(add_operators(api, kTiledSwiGLUs, *domain));
    ONNXQ_RETURN_IF_ERROR(add_operators(api, kTiledGathers, *domain));
  } else if (choice & kRoundingProducts) {
    ONNXQ_RETURN_IF_ERROR(add_operators(api, kRoundingMatMuls, *domain));
    ONNXQ_RETURN_IF_ERROR(add_operators(api, kRoundingLinears, *domain));
  } else {
    ONNXQ_RETURN_IF_ERROR(add_operators(api, kMatMuls, *domain));
    ONNXQ_RETURN_IF_ERROR(add_operators(api, kLinears, *domain));
  }
  if (choice & kDequantizing) ONNXQ_RETURN_IF_ERROR(add_operators(api, kDequantizes, *domain));
  OrtCustomOpDomain* none = nullptr;
  // Where two threads made one at the same time, the second stays unused.
  if (!kept.compare_exchange_strong(none, *domain)) *domain = none;
  return nullptr;
}

}  // namespace

Api global_api() { return Api(g_table.load()); }

}  // namespace onnxq

// onnxruntime calls this for SessionOptions.register_custom_ops_library. Doing so twice is harmless.
ONNXQ_EXPORT onnxq::OrtStatus* RegisterCustomOps(onnxq::OrtSessionOptions* options, const onnxq::OrtApiBase* base) {
  using namespace onnxq;
  OrtApi table = base->GetApi(kApiVersion);
  if (!table) {
    // Creating a status is the first entry of every version.
    table = base->GetApi(1);
    return table ? Api(table).error(ErrorCode::kFail, "onnxq needs onnxruntime 1.18 or later; this is %s",
                                    base->GetVersionString())
                 : nullptr;
  }
  const Api api(table);
  OrtApi known = nullptr;
  if (!g_table.compare_exchange_strong(known, table) && known != table) {
    return api.error(ErrorCode::kFail, "this copy of onnxq's library already serves another onnxruntime");
  }
  int registered = 0, with_dequantize = 0, rounding = 0, for_cuda = 0;
  ONNXQ_RETURN_IF_ERROR(api.has_entry(options, kRegistered, &registered));
  if (registered) return nullptr;
  ONNXQ_RETURN_IF_ERROR(api.has_entry(options, kWithDequantize, &with_dequantize));
  ONNXQ_RETURN_IF_ERROR(api.has_entry(options, kRounding, &rounding));
  ONNXQ_RETURN_IF_ERROR(api.has_entry(options, kForCuda, &for_cuda));
  OrtCustomOpDomain* domain = nullptr;
  const int choice = for_cuda ? kCuda : (with_dequantize ? kDequantizing : 0) + (rounding ? kRoundingProducts : 0);
  ONNXQ_RETURN_IF_ERROR(get_domain(api, choice, &domain));
  ONNXQ_RETURN_IF_ERROR(api.add_domain(options, domain));
  return api.add_entry(options, kRegistered, "1");
}

// Names of the operators on the CPU and on CUDA, one a line.
ONNXQ_EXPORT const char* OnnxqMatMuls() { return onnxq::kMatMuls.names; }
ONNXQ_EXPORT const char* OnnxqLinears() { return onnxq::kLinears.names; }
ONNXQ_EXPORT const char* OnnxqDequantizes() { return onnxq::kDequantizes.names; }
ONNXQ_EXPORT const char* OnnxqCudaMatMuls() { return onnxq::kTiledMatMuls.names; }
ONNXQ_EXPORT const char* OnnxqCudaLinears() { return onnxq::kTiledLinears.names; }
ONNXQ_EXPORT const char* OnnxqCudaSwiGLUs() { return onnxq::kTiledSwiGLUs.names; }
ONNXQ_EXPORT const char* OnnxqCudaGathers() { return onnxq::kTiledGathers.names; }

// Who compiles kernels for sessions on CUDA.
ONNXQ_EXPORT void OnnxqSetCompiler(onnxq::Compiler compiler) { onnxq::set_compiler(compiler); }

// A product on a GPU without onnxruntime, for measurements. Returns 1, or 0 and a message.
ONNXQ_EXPORT int OnnxqMultiply(const onnxq::gpu::Kernel* kernel, const onnxq::gpu::Weight* weight,
                               const onnxq::gpu::Rows* rows, char* message, size_t size) {
  return onnxq::gpu::multiply(*kernel, *weight, *rows, message, size);
}

// The same of columns that are looked up.
ONNXQ_EXPORT int OnnxqLookUp(void* function, const onnxq::gpu::Weight* weight, const onnxq::gpu::Lookup* lookup,
                             char* message, size_t size) {
  return onnxq::gpu::look_up(function, *weight, *lookup, message, size);
}

// The kernels that sessions made now will run, or null where ONNXQ_CPU_ISA names none that this CPU can run.
ONNXQ_EXPORT const char* OnnxqInstructionSet() {
  const onnxq::Kernels* kernels = onnxq::select_kernels();
  return kernels ? kernels->name : nullptr;
}

// Whether a session that lets products round activations gets a kernel that does, for the format of that name.
ONNXQ_EXPORT int OnnxqRounds(const char* format) {
  const onnxq::Kernels* kernels = onnxq::select_kernels();
  for (const onnxq::Format& each : onnxq::kFormats) {
    if (strcmp(each.name, format) == 0) return kernels && kernels->round_row && each.int8_unit > 0;
  }
  return 0;
}

// All kernels that this CPU can run, fastest first.
ONNXQ_EXPORT const char* OnnxqInstructionSets() { return onnxq::runnable_kernels(); }
