// All operators, and what the library exports.
#include <atomic>

#include "../cpu/select.h"
#include "operator.h"

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

const Operator& self(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

const char* get_name(const OrtCustomOp* op) { return self(op).name; }
const char* get_provider(const OrtCustomOp*) { return "CPUExecutionProvider"; }
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
  if (index < packed || index == self(op).bias_index()) return static_cast<int>(self(op).type);
  // Scales may be of another type than the result: any, checked by the kernel.
  return static_cast<int>(index == packed + 1 ? ElementType::kUndefined : ElementType::kUint8);
}

constexpr size_t append(char* to, size_t end, const char* text) {
  for (; *text; ++text) to[end++] = *text;
  return end;
}

constexpr Operator make(Family family, const Format& format, bool asymmetric, ElementType type) {
  Operator made{};
  made.version = kApiVersion;
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
  made.CreateKernelV2 = create_kernel;
  made.KernelComputeV2 = compute;
  made.InferOutputShapeFn = infer_shape;
  made.GetStartVersion = get_start_version;
  made.GetEndVersion = get_end_version;
  size_t end = append(made.name, 0,
                      family == Family::kMatMul   ? "MatMul"
                      : family == Family::kLinear ? "Linear"
                                                  : "Dequantize");
  end = append(made.name, end, format.name);
  append(made.name, end, asymmetric ? "Asymmetric" : "");
  made.family = family;
  made.asymmetric = asymmetric;
  made.type = type;
  made.format = &format;
  return made;
}

constexpr Family kFamilies[] = {Family::kMatMul, Family::kLinear, Family::kDequantize};
constexpr ElementType kTypes[] = {ElementType::kFloat, ElementType::kFloat16, ElementType::kBFloat16};

constexpr size_t count_operators() {
  size_t count = 0;
  for (const Format& format : kFormats) count += 3 * 3 * (format.is_integer() ? 2 : 1);
  return count;
}

struct Operators {
  Operator each[count_operators()];
  char names[8192];  // each once, one a line

  constexpr Operators() : each{}, names{} {
    size_t count = 0, end = 0;
    for (Family family : kFamilies) {
      for (const Format& format : kFormats) {
        for (int asymmetric = 0; asymmetric <= (format.is_integer() ? 1 : 0); ++asymmetric) {
          for (ElementType type : kTypes) each[count++] = make(family, format, asymmetric, type);
          end = append(names, append(names, end, each[count - 1].name), "\n");
        }
      }
    }
  }
};

constexpr Operators kOperators;

std::atomic<OrtApi> g_table{nullptr};
std::atomic<OrtCustomOpDomain*> g_domains[2] = {};  // without and with Dequantize operators

// A domain outlives every session, so it is never released; all sessions share it.
OrtStatus* get_domain(const Api& api, bool with_dequantize, OrtCustomOpDomain** domain) {
  std::atomic<OrtCustomOpDomain*>& kept = g_domains[with_dequantize];
  *domain = kept.load();
  if (*domain) return nullptr;
  ONNXQ_RETURN_IF_ERROR(api.create_domain(kDomain, domain));
  for (const Operator& op : kOperators.each) {
    if (op.is_product() || with_dequantize) ONNXQ_RETURN_IF_ERROR(api.add_operator(*domain, &op));
  }
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
    return table ? Api(table).error(ErrorCode::kFail, "onnxq needs onnxruntime 1.17 or later; this is %s",
                                    base->GetVersionString())
                 : nullptr;
  }
  const Api api(table);
  OrtApi known = nullptr;
  if (!g_table.compare_exchange_strong(known, table) && known != table) {
    return api.error(ErrorCode::kFail, "this copy of onnxq's library already serves another onnxruntime");
  }
  int registered = 0, with_dequantize = 0;
  ONNXQ_RETURN_IF_ERROR(api.has_entry(options, kRegistered, &registered));
  if (registered) return nullptr;
  ONNXQ_RETURN_IF_ERROR(api.has_entry(options, kWithDequantize, &with_dequantize));
  OrtCustomOpDomain* domain = nullptr;
  ONNXQ_RETURN_IF_ERROR(get_domain(api, with_dequantize != 0, &domain));
  ONNXQ_RETURN_IF_ERROR(api.add_domain(options, domain));
  return api.add_entry(options, kRegistered, "1");
}

// Names of the operators, one a line.
ONNXQ_EXPORT const char* OnnxqOperators() { return onnxq::kOperators.names; }

// The kernels that sessions made now will run, or null where ONNXQ_CPU_ISA names none that this CPU can run.
ONNXQ_EXPORT const char* OnnxqInstructionSet() {
  const onnxq::Kernels* kernels = onnxq::select_kernels();
  return kernels ? kernels->name : nullptr;
}

// All kernels that this CPU can run, fastest first.
ONNXQ_EXPORT const char* OnnxqInstructionSets() { return onnxq::runnable_kernels(); }
