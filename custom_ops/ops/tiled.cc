#include "tiled.h"

#include <atomic>
#include <cstdlib>

namespace onnxq {
namespace {

std::atomic<Compiler> g_compiler{nullptr};

constexpr int64_t kLayout = 2;  // `tiled2`
constexpr int64_t kUnitK = 128, kSlabK = 64, kUnitN = 16;
constexpr int kPieces = 3;  // bfloat16 that add up to a float32

struct TiledKernel : Kernel {
  gpu::Weight weight;
  gpu::Kernels kernels;
  ElementType scale_type;
  bool constant;    // the weight is, so that it may be read before the kernels before are done
  int64_t columns;  // of the weight that are no filling
};

int64_t K(const Kernel& kernel) { return kernel.shape.dims[0]; }
int64_t N(const Kernel& kernel) { return kernel.shape.dims[1]; }

OrtStatus* failure(const TiledKernel& kernel, const char* message) {
  return kernel.api.error(ErrorCode::kFail, "onnxq %s (node '%s'): %s", kernel.op->name, kernel.node, message);
}

OrtStatus* check(const TiledKernel& kernel, const char* what, const OrtValue* value, const Shape& wanted,
                 ElementType* type) {
  Shape shape;
  ONNXQ_RETURN_IF_ERROR(kernel.api.shape(value, &shape, type));
  bool same = shape.rank == wanted.rank;
  for (size_t i = 0; same && i < wanted.rank; ++i) same = shape.dims[i] == wanted.dims[i];
  if (same) return nullptr;
  char has[160], wants[160];
  write_shape(shape, has, sizeof has);
  write_shape(wanted, wants, sizeof wants);
  return kernel.invalid("%s has shape %s; a weight [%lld, %lld] in the layout tiled2 with blocks of %lld has %s", what,
                        has, static_cast<long long>(K(kernel)), static_cast<long long>(N(kernel)),
                        static_cast<long long>(kernel.block_size), wants);
}

OrtStatus* check_uint8(const TiledKernel& kernel, const char* what, const OrtValue* value, const Shape& wanted) {
  ElementType type;
  ONNXQ_RETURN_IF_ERROR(check(kernel, what, value, wanted, &type));
  if (type == ElementType::kUint8) return nullptr;
  return kernel.invalid("%s is %s; it is uint8", what, type_name(type));
}

// Input `index`: codes, scales, zero points or bias.
OrtStatus* check_input(const TiledKernel& kernel, size_t index, const OrtValue* value, ElementType* scale_type) {
  const Shape codes{3, {N(kernel) / kUnitN, (K(kernel) + kUnitK - 1) / kUnitK, kernel.weight.unit_bytes}};
  const size_t first = kernel.op->packed_index();
  if (index == first) return check_uint8(kernel, "packed", value, codes);
  if (index == kernel.op->weight_end()) return check_bias(kernel, value);
  if (index == first + 2) return check_uint8(kernel, "zero_point", value, group_shape(kernel));
  ONNXQ_RETURN_IF_ERROR(check(kernel, "scale", value, group_shape(kernel), scale_type));
  if (float_type(*scale_type)) return nullptr;
  return kernel.invalid("scale is %s; it is float, float16 or bfloat16", type_name(*scale_type));
}

OrtStatus* read_tiled_attributes(const OrtKernelInfo* info, TiledKernel* kernel) {
  ONNXQ_RETURN_IF_ERROR(read_attributes(info, kernel));
  int64_t layout = 0;
  if (!kernel->api.attribute(info, "layout", &layout)) {
    return kernel->invalid("attribute layout, an integer, is missing");
  }
  if (layout != kLayout) {
    return kernel->invalid("attribute layout is %lld; this version of onnxq knows 2 (tiled2)",
                           static_cast<long long>(layout));
  }
  kernel->columns = N(*kernel);
  // Lookups tell filling from columns; they are in the same units as those of a product that reads them too.
  if (kernel->op->is_lookup()) kernel->shape.dims[1] += (kUnitN - N(*kernel) % kUnitN) % kUnitN;
  const int64_t k = K(*kernel), n = N(*kernel), block = kernel->block_size;
  if (k == 0 || n == 0 || k % kSlabK || n % kUnitN) {
    return kernel->invalid("attribute shape is [%lld, %lld]; the GPU kernels take K in slabs of 64, N in units of 16",
                           static_cast<long long>(k), static_cast<long long>(n));
  }
  if (block < k && block != 16 && block != 32 && block != 64 && block % kUnitK) {
    return kernel->invalid("attribute block_size is %lld; the GPU kernels take 16, 32, 64, a multiple of 128, or K",
                           static_cast<long long>(block));
  }
  if (kernel->op->is_gated() && n % (2 * kUnitN)) {
    return kernel->invalid("attribute shape is [%lld, %lld]; gate and up have as many columns each, in units of 16",
                           static_cast<long long>(k), static_cast<long long>(n));
  }
  gpu::Weight& weight = kernel->weight;
  weight.K = k;
  weight.N = n;
  weight.unit_bytes = kernel->op->format->bits * static_cast<int32_t>(kUnitK * kUnitN / 8);
  weight.group = block < k ? static_cast<int32_t>(block) : 0;
  weight.zero_points = kernel->op->asymmetric;
  return nullptr;
}

// One past the last input that is checked alike: indices are no part of a weight.
size_t checked_inputs(const Operator& op) { return op.is_lookup() ? op.weight_end() : op.input_count(); }

// Checks what does not change, and says on which device it is.
OrtStatus* check_constants(const OrtKernelInfo* info, TiledKernel* kernel, int32_t* device) {
  const Api& api = kernel->api;
  kernel->constant = true;
  kernel->scale_type = kernel->op->type;
  const size_t first = kernel->op->packed_index();
  for (size_t i = first; i < checked_inputs(*kernel->op); ++i) {
    const OrtValue* value = nullptr;
    ONNXQ_RETURN_IF_ERROR(api.constant_input(info, i, &value));
    kernel->constant = kernel->constant && value;
    if (!value) continue;
    ONNXQ_RETURN_IF_ERROR(check_input(*kernel, i, value, &kernel->scale_type));
    if (i == first) ONNXQ_RETURN_IF_ERROR(api.device(value, device));
  }
  return nullptr;
}

OrtStatus* compile(TiledKernel* kernel, int32_t device) {
  const Compiler compiler = g_compiler.load();
  if (!compiler) return kernel->invalid("no kernels are compiled for it; onnxq.register(options, cuda=True) sees to that");
  const Operator& op = *kernel->op;
  const Request request{device,
                        static_cast<int32_t>(op.format - kFormats),
                        op.type,
                        kernel->scale_type,
                        kernel->weight.group,
                        kernel->weight.zero_points,
                        op.is_gated(),
                        op.is_lookup(),
                        kernel->weight.K,
                        kernel->weight.N};
  char message[320] = "";
  return compiler(&request, &kernel->kernels, message, sizeof message) ? failure(*kernel, message) : nullptr;
}

OrtStatus* read_weight(const TiledKernel& kernel, const OrtKernelContext* context, gpu::Weight* weight,
                       const void** bias) {
  *weight = kernel.weight;
  const void** const places[] = {&weight->packed, &weight->scale, kernel.op->asymmetric ? &weight->zero : bias, bias};
  const size_t first = kernel.op->packed_index();
  for (size_t i = first; i < checked_inputs(*kernel.op); ++i) {
    const OrtValue* value = nullptr;
    ElementType type = kernel.scale_type;
    ONNXQ_RETURN_IF_ERROR(kernel.api.input(context, i, &value));
    ONNXQ_RETURN_IF_ERROR(check_input(kernel, i, value, &type));
    if (type != kernel.scale_type) {
      return kernel.invalid("scale is %s; kernels were compiled for %s, the type of the result, since it is no constant",
                            type_name(type), type_name(kernel.scale_type));
    }
    ONNXQ_RETURN_IF_ERROR(kernel.api.data(value, places[i - first]));
  }
  weight->scale_bytes = kernel.scale_type == ElementType::kFloat ? 4 : 2;
  return nullptr;
}

OrtStatus* multiply(const TiledKernel& kernel, const gpu::Weight& weight, const gpu::Rows& rows) {
  char message[320] = "";
  const gpu::Kernel* chosen = kernel.kernels.for_rows(rows.M);
  if (!chosen) return kernel.invalid("there is no kernel for %lld rows of x", static_cast<long long>(rows.M));
  return gpu::multiply(*chosen, weight, rows, message, sizeof message) ? nullptr : failure(kernel, message);
}

// The sums of three times as many rows of bfloat16 are added up; `pieces` has room for the rows, `sums` for the sums.
OrtStatus* multiply_pieces(const TiledKernel& kernel, const gpu::Weight& weight, const gpu::Rows& rows, void* pieces,
                           void* sums) {
  char message[320] = "";
  if (!gpu::split_float32(kernel.kernels, rows.x, pieces, rows.M * weight.K, rows.stream, message, sizeof message)) {
    return failure(kernel, message);
  }
  gpu::Rows wide = rows;
  wide.x = pieces;
  wide.y = sums;
  wide.bias = nullptr;
  wide.M = kPieces * rows.M;
  ONNXQ_RETURN_IF_ERROR(multiply(kernel, weight, wide));
  const bool done = gpu::sum_pieces(kernel.kernels, sums, rows, weight.N, message, sizeof message);
  return done ? nullptr : failure(kernel, message);
}

// float32 activations are not rounded: they become three times as many rows of bfloat16.
OrtStatus* multiply_float32(const TiledKernel& kernel, const gpu::Weight& weight, const gpu::Rows& rows,
                            const OrtKernelContext* context, const OrtValue* x) {
  // K is a multiple of 64, so sums begin at a multiple of 128 bytes.
  const size_t piece_bytes = static_cast<size_t>(kPieces * rows.M * weight.K) * sizeof(uint16_t);
  const size_t sum_bytes = static_cast<size_t>(kPieces * rows.M * weight.N) * sizeof(float);
  void* memory = nullptr;
  ONNXQ_RETURN_IF_ERROR(kernel.api.scratch(context, x, piece_bytes + sum_bytes, &memory));
  OrtStatus* status = multiply_pieces(kernel, weight, rows, memory, static_cast<char*>(memory) + piece_bytes);
  OrtStatus* freed = kernel.api.free_scratch(context, x, memory);
  if (!status) return freed;
  kernel.api.ignore(freed);
  return status;
}

OrtStatus* look_up(const TiledKernel& kernel, OrtKernelContext* context) {
  const Api& api = kernel.api;
  const OrtValue* indices = nullptr;
  Shape shape;
  ElementType type;
  ONNXQ_RETURN_IF_ERROR(api.input(context, kernel.op->weight_end(), &indices));
  ONNXQ_RETURN_IF_ERROR(api.shape(indices, &shape, &type));
  if (type != ElementType::kInt32 && type != ElementType::kInt64) {
    return kernel.invalid("indices are %s; they are int32 or int64", type_name(type));
  }
  if (shape.rank == Shape::kMaxRank) return kernel.invalid("indices have %zu dimensions or more", shape.rank);
  gpu::Weight weight;
  gpu::Lookup lookup{};
  const void* none = nullptr;
  ONNXQ_RETURN_IF_ERROR(read_weight(kernel, context, &weight, &none));
  ONNXQ_RETURN_IF_ERROR(api.data(indices, &lookup.indices));
  lookup.count = shape.elements();
  lookup.columns = kernel.columns;
  lookup.wide = type == ElementType::kInt64;
  shape.dims[shape.rank++] = weight.K;
  ONNXQ_RETURN_IF_ERROR(api.output(context, 0, shape, &lookup.y));
  if (lookup.count == 0) return nullptr;
  ONNXQ_RETURN_IF_ERROR(api.gpu_stream(context, &lookup.stream));
  char message[320] = "";
  const bool done = gpu::look_up(kernel.kernels.look_up, weight, lookup, message, sizeof message);
  return done ? nullptr : failure(kernel, message);
}

}  // namespace

void set_compiler(Compiler compiler) { g_compiler.store(compiler); }

OrtStatus* create_tiled(const OrtCustomOp* op, OrtApi table, const OrtKernelInfo* info, void** out) {
  const Api api(table);
  TiledKernel* kernel = static_cast<TiledKernel*>(calloc(1, sizeof(TiledKernel)));
  if (!kernel) return api.error(ErrorCode::kFail, "out of memory");
  kernel->api = api;
  kernel->op = static_cast<const Operator*>(op);
  api.node_name(info, kernel->node, sizeof kernel->node);
  int32_t device = -1;
  OrtStatus* status = read_tiled_attributes(info, kernel);
  if (!status) status = check_constants(info, kernel, &device);
  if (!status) status = compile(kernel, device);
  if (status) {
    free(kernel);
    return status;
  }
  *out = kernel;
  return nullptr;
}

OrtStatus* compute_tiled(void* self, OrtKernelContext* context) {
  const TiledKernel& kernel = *static_cast<const TiledKernel*>(self);
  if (kernel.op->is_lookup()) return look_up(kernel, context);
  const Api& api = kernel.api;
  const OrtValue* x = nullptr;
  Shape shape;
  ONNXQ_RETURN_IF_ERROR(api.input(context, 0, &x));
  ONNXQ_RETURN_IF_ERROR(api.shape(x, &shape));
  ONNXQ_RETURN_IF_ERROR(check_last_dimension(kernel, shape));
  gpu::Weight weight;
  gpu::Rows rows{};
  ONNXQ_RETURN_IF_ERROR(read_weight(kernel, context, &weight, &rows.bias));
  const void* data = nullptr;
  ONNXQ_RETURN_IF_ERROR(api.data(x, &data));
  shape.dims[shape.rank - 1] = 1;
  rows.x = data;
  rows.M = shape.elements();
  rows.early = kernel.constant;
  shape.dims[shape.rank - 1] = kernel.op->result_columns(weight.N);
  ONNXQ_RETURN_IF_ERROR(api.output(context, 0, shape, &rows.y));
  if (rows.M == 0) return nullptr;
  ONNXQ_RETURN_IF_ERROR(api.gpu_stream(context, &rows.stream));
  if (kernel.op->type == ElementType::kFloat) return multiply_float32(kernel, weight, rows, context, x);
  return multiply(kernel, weight, rows);
}

}  // namespace onnxq
