// Kernels: their attributes and inputs are checked before any number is computed.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "../cpu/select.h"
#include "operator.h"

namespace onnxq {
namespace {

// More than any memory holds, and few enough that positions of bits in 64 bits do not overflow.
constexpr int64_t kMaxElements = int64_t{1} << 48;

OrtStatus* check_shape(const Kernel& kernel) {
  if (kernel.op->family != Family::kDequantize && kernel.shape.rank != 2) {
    return kernel.invalid("attribute shape has %zu numbers; it is [K, N]", kernel.shape.rank);
  }
  int64_t elements = 1;
  for (size_t i = 0; i < kernel.shape.rank; ++i) {
    const int64_t dim = kernel.shape.dims[i];
    if (dim < 0) return kernel.invalid("attribute shape has a negative dimension, %lld", static_cast<long long>(dim));
    if (dim > kMaxElements || (dim && elements > kMaxElements / dim)) {
      return kernel.invalid("attribute shape has more than 2^48 elements");
    }
    elements *= dim;
  }
  const int64_t rank = static_cast<int64_t>(kernel.shape.rank);
  if (kernel.axis < 0 || kernel.axis >= rank) {
    return kernel.invalid("attribute axis is %lld; the shape has axes 0 to %lld", static_cast<long long>(kernel.axis),
                          static_cast<long long>(rank - 1));
  }
  if (kernel.block_size < 1) {
    return kernel.invalid("attribute block_size is %lld; it is 1 or more", static_cast<long long>(kernel.block_size));
  }
  return nullptr;
}

OrtStatus* check_packed(const Kernel& kernel, const char* what, int64_t codes, const OrtValue* value) {
  Shape shape;
  ElementType type;
  ONNXQ_RETURN_IF_ERROR(kernel.api.shape(value, &shape, &type));
  const uint64_t bytes = packed_bytes(static_cast<uint64_t>(codes), kernel.op->format->bits);
  if (type != ElementType::kUint8 || static_cast<uint64_t>(shape.elements()) != bytes) {
    return kernel.invalid("%s is %lld elements of %s; %lld codes of %d bits are %llu bytes", what,
                          static_cast<long long>(shape.elements()), type_name(type), static_cast<long long>(codes),
                          kernel.op->format->bits, static_cast<unsigned long long>(bytes));
  }
  return nullptr;
}

// Scales are one for each group, or as many along the axis and one along all others.
OrtStatus* check_scale(const Kernel& kernel, const OrtValue* value, Inputs* inputs, int64_t* count) {
  Shape shape;
  ElementType type;
  ONNXQ_RETURN_IF_ERROR(kernel.api.shape(value, &shape, &type));
  const Float* number = float_type(type);
  if (!number) return kernel.invalid("scale is %s; it is float, float16 or bfloat16", type_name(type));
  const Shape groups = group_shape(kernel);
  bool each = shape.rank == groups.rank, shared = each;
  for (size_t i = 0; i < groups.rank && (each || shared); ++i) {
    each = each && shape.dims[i] == groups.dims[i];
    const bool along = static_cast<int64_t>(i) == kernel.axis;
    shared = shared && (shape.dims[i] == (along ? groups.dims[i] : 1) || (along && !groups.dims[i]));
  }
  // Where only the first axis has blocks, a scale for a row of blocks is as easy to read as one for each.
  const bool fits = each || (shared && (kernel.op->is_product() || groups.dims[kernel.axis] <= 1));
  if (!fits) {
    char has[160], wants[160];
    write_shape(shape, has, sizeof has);
    write_shape(groups, wants, sizeof wants);
    return kernel.invalid("scale has shape %s; a weight with blocks of %lld along axis %lld has scales of %s", has,
                          static_cast<long long>(kernel.block_size), static_cast<long long>(kernel.axis), wants);
  }
  inputs->scale_type = *number;
  inputs->scale_per_column = each;
  *count = shape.elements();
  return nullptr;
}

// What does not change is checked when the session is made.
OrtStatus* check_constants(const Kernel& kernel, const OrtKernelInfo* info) {
  const size_t first = kernel.op->packed_index();
  const OrtValue* value = nullptr;
  ONNXQ_RETURN_IF_ERROR(kernel.api.constant_input(info, first, &value));
  if (value) ONNXQ_RETURN_IF_ERROR(check_packed(kernel, "packed", kernel.shape.elements(), value));
  Inputs unused;
  int64_t scales = 0;
  if (kernel.op->has_bias()) {
    ONNXQ_RETURN_IF_ERROR(kernel.api.constant_input(info, kernel.op->weight_end(), &value));
    if (value) ONNXQ_RETURN_IF_ERROR(check_bias(kernel, value));
  }
  ONNXQ_RETURN_IF_ERROR(kernel.api.constant_input(info, first + 1, &value));
  if (!value) return nullptr;
  ONNXQ_RETURN_IF_ERROR(check_scale(kernel, value, &unused, &scales));
  if (!kernel.op->asymmetric) return nullptr;
  ONNXQ_RETURN_IF_ERROR(kernel.api.constant_input(info, first + 2, &value));
  return value ? check_packed(kernel, "zero_point", scales, value) : nullptr;
}

}  // namespace

OrtStatus* Kernel::invalid(const char* format, ...) const {
  char message[400];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return api.error(ErrorCode::kInvalidArgument, "onnxq %s (node '%s'): %s", op->name, node, message);
}

const Float* float_type(ElementType type) {
  static constexpr Float kTypes[] = {Float::kFloat32, Float::kFloat16, Float::kBFloat16};
  switch (type) {
    case ElementType::kFloat:
      return &kTypes[0];
    case ElementType::kFloat16:
      return &kTypes[1];
    case ElementType::kBFloat16:
      return &kTypes[2];
    default:
      return nullptr;
  }
}

const char* type_name(ElementType type) {
  switch (type) {
    case ElementType::kFloat:
      return "float";
    case ElementType::kFloat16:
      return "float16";
    case ElementType::kBFloat16:
      return "bfloat16";
    case ElementType::kUint8:
      return "uint8";
    case ElementType::kInt32:
      return "int32";
    case ElementType::kInt64:
      return "int64";
    default:
      return "another type";
  }
}

void write_shape(const Shape& shape, char* text, size_t size) {
  size_t end = static_cast<size_t>(snprintf(text, size, "["));
  for (size_t i = 0; i < shape.rank && end < size; ++i) {
    end += static_cast<size_t>(snprintf(text + end, size - end, i ? ", %lld" : "%lld",
                                        static_cast<long long>(shape.dims[i])));
  }
  if (end < size) snprintf(text + end, size - end, "]");
}

OrtStatus* read_attributes(const OrtKernelInfo* info, Kernel* kernel) {
  const Api& api = kernel->api;
  int64_t dtype = 0;
  if (!api.attribute(info, "shape", &kernel->shape)) {
    return kernel->invalid("attribute shape, at most %zu integers, is missing", Shape::kMaxRank);
  }
  if (!api.attribute(info, "block_size", &kernel->block_size)) {
    return kernel->invalid("attribute block_size, an integer, is missing");
  }
  if (!api.attribute(info, "dtype", &dtype)) return kernel->invalid("attribute dtype, an integer, is missing");
  if (kernel->op->family == Family::kDequantize && !api.attribute(info, "axis", &kernel->axis)) {
    return kernel->invalid("attribute axis, an integer, is missing");
  }
  // ONNX and onnxruntime number these three types alike.
  if (dtype != static_cast<int64_t>(kernel->op->type)) {
    return kernel->invalid("attribute dtype is %lld, and the type of the result is %s (%d)",
                           static_cast<long long>(dtype), type_name(kernel->op->type),
                           static_cast<int>(kernel->op->type));
  }
  ONNXQ_RETURN_IF_ERROR(check_shape(*kernel));
  // A longer block means the same, and sums with it could overflow.
  const int64_t length = kernel->shape.dims[kernel->axis];
  if (kernel->block_size > length) kernel->block_size = length > 0 ? length : 1;
  return nullptr;
}

Shape group_shape(const Kernel& kernel) {
  Shape groups = kernel.shape;
  int64_t& dim = groups.dims[kernel.axis];
  dim = (dim + kernel.block_size - 1) / kernel.block_size;
  return groups;
}

OrtStatus* check_bias(const Kernel& kernel, const OrtValue* value) {
  Shape shape;
  ElementType type;
  ONNXQ_RETURN_IF_ERROR(kernel.api.shape(value, &shape, &type));
  if (shape.rank != 1 || shape.dims[0] != kernel.shape.dims[1]) {
    char has[160];
    write_shape(shape, has, sizeof has);
    return kernel.invalid("bias has shape %s; the weight has N = %lld", has,
                          static_cast<long long>(kernel.shape.dims[1]));
  }
  return nullptr;
}

OrtStatus* create_kernel(const OrtCustomOp* op, OrtApi table, const OrtKernelInfo* info, void** out) {
  const Api api(table);
  Kernel* kernel = static_cast<Kernel*>(calloc(1, sizeof(Kernel)));
  if (!kernel) return api.error(ErrorCode::kFail, "out of memory");
  kernel->api = api;
  kernel->op = static_cast<const Operator*>(op);
  api.node_name(info, kernel->node, sizeof kernel->node);
  kernel->cpu = select_kernels();
  OrtStatus* status = nullptr;
  if (!kernel->cpu) {
    status = kernel->invalid("%s is '%s'; this CPU can run: %s", kIsaVariable, getenv(kIsaVariable), runnable_kernels());
  }
  if (!status) status = read_attributes(info, kernel);
  if (!status) status = check_constants(*kernel, info);
  if (status) {
    free(kernel);
    return status;
  }
  *out = kernel;
  return nullptr;
}

void destroy_kernel(void* kernel) { free(kernel); }

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  const Kernel& self = *static_cast<const Kernel*>(kernel);
  return self.op->is_product() ? compute_matmul(self, context) : compute_dequantize(self, context);
}

OrtStatus* read_inputs(const Kernel& kernel, OrtKernelContext* context, Inputs* inputs) {
  const Api& api = kernel.api;
  const size_t first = kernel.op->packed_index();
  const OrtValue* value = nullptr;
  const void* data = nullptr;
  ONNXQ_RETURN_IF_ERROR(api.input(context, first, &value));
  ONNXQ_RETURN_IF_ERROR(check_packed(kernel, "packed", kernel.shape.elements(), value));
  ONNXQ_RETURN_IF_ERROR(api.data(value, &data));
  inputs->packed = static_cast<const uint8_t*>(data);
  int64_t scales = 0;
  ONNXQ_RETURN_IF_ERROR(api.input(context, first + 1, &value));
  ONNXQ_RETURN_IF_ERROR(check_scale(kernel, value, inputs, &scales));
  ONNXQ_RETURN_IF_ERROR(api.data(value, &inputs->scale));
  if (kernel.op->has_bias()) {
    ONNXQ_RETURN_IF_ERROR(api.input(context, kernel.op->weight_end(), &value));
    ONNXQ_RETURN_IF_ERROR(check_bias(kernel, value));
    ONNXQ_RETURN_IF_ERROR(api.data(value, &inputs->bias));
  }
  if (!kernel.op->asymmetric) return nullptr;
  ONNXQ_RETURN_IF_ERROR(api.input(context, first + 2, &value));
  ONNXQ_RETURN_IF_ERROR(check_packed(kernel, "zero_point", scales, value));
  ONNXQ_RETURN_IF_ERROR(api.data(value, &data));
  inputs->zero_point = static_cast<const uint8_t*>(data);
  return nullptr;
}

}  // namespace onnxq
