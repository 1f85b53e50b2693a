#include "api.h"

#include <cstdarg>
#include <cstdio>

namespace onnxq {

OrtStatus* Api::error(ErrorCode code, const char* format, ...) const {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return function<OrtStatus* (*)(int, const char*)>(kCreateStatus)(static_cast<int>(code), message);
}

void Api::ignore(OrtStatus* status) const {
  if (status) function<void (*)(OrtStatus*)>(kReleaseStatus)(status);
}

OrtStatus* Api::create_domain(const char* name, OrtCustomOpDomain** domain) const {
  return function<OrtStatus* (*)(const char*, OrtCustomOpDomain**)>(kCreateCustomOpDomain)(name, domain);
}

OrtStatus* Api::add_operator(OrtCustomOpDomain* domain, const OrtCustomOp* op) const {
  return function<OrtStatus* (*)(OrtCustomOpDomain*, const OrtCustomOp*)>(kCustomOpDomainAdd)(domain, op);
}

OrtStatus* Api::add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
  return function<OrtStatus* (*)(OrtSessionOptions*, OrtCustomOpDomain*)>(kAddCustomOpDomain)(options, domain);
}

OrtStatus* Api::has_entry(const OrtSessionOptions* options, const char* key, int* has) const {
  return function<OrtStatus* (*)(const OrtSessionOptions*, const char*, int*)>(kHasSessionConfigEntry)(options, key,
                                                                                                      has);
}

OrtStatus* Api::add_entry(OrtSessionOptions* options, const char* key, const char* value) const {
  return function<OrtStatus* (*)(OrtSessionOptions*, const char*, const char*)>(kAddSessionConfigEntry)(options, key,
                                                                                                       value);
}

bool Api::attribute(const OrtKernelInfo* info, const char* name, int64_t* value) const {
  OrtStatus* status = function<OrtStatus* (*)(const OrtKernelInfo*, const char*, int64_t*)>(
      kKernelInfoGetAttributeInt64)(info, name, value);
  ignore(status);
  return status == nullptr;
}

bool Api::attribute(const OrtKernelInfo* info, const char* name, Shape* value) const {
  size_t size = Shape::kMaxRank;
  OrtStatus* status = function<OrtStatus* (*)(const OrtKernelInfo*, const char*, int64_t*, size_t*)>(
      kKernelInfoGetAttributeArrayInt64)(info, name, value->dims, &size);
  ignore(status);
  value->rank = size;
  return status == nullptr;
}

OrtStatus* Api::constant_input(const OrtKernelInfo* info, size_t index, const OrtValue** value) const {
  int constant = 0;
  ONNXQ_RETURN_IF_ERROR((function<OrtStatus* (*)(const OrtKernelInfo*, size_t, int*, const OrtValue**)>(
      kKernelInfoGetConstantInputTensor)(info, index, &constant, value)));
  if (!constant) *value = nullptr;
  return nullptr;
}

void Api::node_name(const OrtKernelInfo* info, char* name, size_t size) const {
  OrtStatus* status = function<OrtStatus* (*)(const OrtKernelInfo*, char*, size_t*)>(kKernelInfoGetNodeName)(
      info, name, &size);
  if (status) name[0] = 0;  // longer than the buffer
  ignore(status);
}

OrtStatus* Api::read_shape(const OrtTensorTypeAndShapeInfo* info, Shape* shape, ElementType* type) const {
  ONNXQ_RETURN_IF_ERROR((function<OrtStatus* (*)(const OrtTensorTypeAndShapeInfo*, size_t*)>(kGetDimensionsCount)(
      info, &shape->rank)));
  if (shape->rank > Shape::kMaxRank) {
    return error(ErrorCode::kNotImplemented, "a tensor has %zu dimensions; at most %zu are supported", shape->rank,
                 Shape::kMaxRank);
  }
  ONNXQ_RETURN_IF_ERROR((function<OrtStatus* (*)(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)>(kGetDimensions)(
      info, shape->dims, shape->rank)));
  if (!type) return nullptr;
  return function<OrtStatus* (*)(const OrtTensorTypeAndShapeInfo*, ElementType*)>(kGetTensorElementType)(info, type);
}

OrtStatus* Api::shape(const OrtValue* value, Shape* shape, ElementType* type) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ONNXQ_RETURN_IF_ERROR((function<OrtStatus* (*)(const OrtValue*, OrtTensorTypeAndShapeInfo**)>(
      kGetTensorTypeAndShape)(value, &info)));
  OrtStatus* status = read_shape(info, shape, type);
  function<void (*)(OrtTensorTypeAndShapeInfo*)>(kReleaseTensorTypeAndShapeInfo)(info);
  return status;
}

OrtStatus* Api::data(const OrtValue* value, const void** data) const {
  void* found = nullptr;
  ONNXQ_RETURN_IF_ERROR((function<OrtStatus* (*)(OrtValue*, void**)>(kGetTensorMutableData)(
      const_cast<OrtValue*>(value), &found)));
  *data = found;
  return nullptr;
}

OrtStatus* Api::input(const OrtKernelContext* context, size_t index, const OrtValue** value) const {
  ONNXQ_RETURN_IF_ERROR((function<OrtStatus* (*)(const OrtKernelContext*, size_t, const OrtValue**)>(
      kKernelContextGetInput)(context, index, value)));
  return *value ? nullptr : error(ErrorCode::kInvalidArgument, "input %zu is missing", index);
}

OrtStatus* Api::output(OrtKernelContext* context, size_t index, const Shape& shape, void** data) const {
  OrtValue* value = nullptr;
  ONNXQ_RETURN_IF_ERROR((function<OrtStatus* (*)(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>(
      kKernelContextGetOutput)(context, index, shape.dims, shape.rank, &value)));
  return function<OrtStatus* (*)(OrtValue*, void**)>(kGetTensorMutableData)(value, data);
}

OrtStatus* Api::memory_info(const OrtValue* value, const OrtMemoryInfo** info) const {
  return function<OrtStatus* (*)(const OrtValue*, const OrtMemoryInfo**)>(kGetTensorMemoryInfo)(value, info);
}

OrtStatus* Api::device(const OrtValue* value, int* device) const {
  const OrtMemoryInfo* info = nullptr;
  ONNXQ_RETURN_IF_ERROR(memory_info(value, &info));
  return function<OrtStatus* (*)(const OrtMemoryInfo*, int*)>(kMemoryInfoGetId)(info, device);
}

OrtStatus* Api::gpu_stream(const OrtKernelContext* context, void** stream) const {
  return function<OrtStatus* (*)(const OrtKernelContext*, void**)>(kKernelContextGetGpuComputeStream)(context, stream);
}

OrtStatus* Api::scratch(const OrtKernelContext* context, const OrtValue* like, size_t bytes, void** memory) const {
  const OrtMemoryInfo* info = nullptr;
  ONNXQ_RETURN_IF_ERROR(memory_info(like, &info));
  return function<OrtStatus* (*)(const OrtKernelContext*, const OrtMemoryInfo*, size_t, void**)>(
      kKernelContextGetScratchBuffer)(context, info, bytes, memory);
}

OrtStatus* Api::free_scratch(const OrtKernelContext* context, const OrtValue* like, void* memory) const {
  const OrtMemoryInfo* info = nullptr;
  ONNXQ_RETURN_IF_ERROR(memory_info(like, &info));
  OrtAllocator* allocator = nullptr;
  ONNXQ_RETURN_IF_ERROR((function<OrtStatus* (*)(const OrtKernelContext*, const OrtMemoryInfo*, OrtAllocator**)>(
      kKernelContextGetAllocator)(context, info, &allocator)));
  OrtStatus* status = function<OrtStatus* (*)(OrtAllocator*, void*)>(kAllocatorFree)(allocator, memory);
  function<void (*)(OrtAllocator*)>(kReleaseAllocator)(allocator);
  return status;
}

OrtStatus* Api::parallel_for(const OrtKernelContext* context, void (*task)(void*, size_t), size_t total,
                             void* user) const {
  // As many batches as tasks: a thread that is done takes the next one.
  return function<OrtStatus* (*)(const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>(
      kKernelContextParallelFor)(context, task, total, total, user);
}

OrtStatus* Api::inferred_input(const OrtShapeInferContext* context, size_t index, Shape* shape, const char** names,
                               ElementType* type) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // belongs to the context
  ONNXQ_RETURN_IF_ERROR((function<OrtStatus* (*)(const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**)>(
      kShapeInferContextGetInputTypeShape)(context, index, &info)));
  ONNXQ_RETURN_IF_ERROR(read_shape(info, shape, type));
  return function<OrtStatus* (*)(const OrtTensorTypeAndShapeInfo*, const char**, size_t)>(kGetSymbolicDimensions)(
      info, names, shape->rank);
}

bool Api::read_inferred(const OrtShapeInferContext* context, const char* name, AttributeType type, void* value,
                        size_t* bytes) const {
  const OrtOpAttr* attribute = nullptr;
  OrtStatus* status = function<OrtStatus* (*)(const OrtShapeInferContext*, const char*, const OrtOpAttr**)>(
      kShapeInferContextGetAttribute)(context, name, &attribute);
  if (!status) {
    status = function<OrtStatus* (*)(const OrtOpAttr*, int, void*, size_t, size_t*)>(kReadOpAttr)(
        attribute, type, value, *bytes, bytes);
  }
  ignore(status);
  return status == nullptr;
}

bool Api::inferred_attribute(const OrtShapeInferContext* context, const char* name, Shape* value) const {
  size_t bytes = sizeof value->dims;
  const bool there = read_inferred(context, name, kAttributeInts, value->dims, &bytes);
  value->rank = bytes / sizeof(int64_t);
  return there;
}

bool Api::inferred_attribute(const OrtShapeInferContext* context, const char* name, int64_t* value) const {
  size_t bytes = sizeof *value;
  return read_inferred(context, name, kAttributeInt, value, &bytes);
}

OrtStatus* Api::set_inferred_output(OrtShapeInferContext* context, const Shape& shape, const char** names,
                                    ElementType type) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ONNXQ_RETURN_IF_ERROR(
      (function<OrtStatus* (*)(OrtTensorTypeAndShapeInfo**)>(kCreateTensorTypeAndShapeInfo)(&info)));
  OrtStatus* status = function<OrtStatus* (*)(OrtTensorTypeAndShapeInfo*, int)>(kSetTensorElementType)(
      info, static_cast<int>(type));
  if (!status) {
    status = function<OrtStatus* (*)(OrtTensorTypeAndShapeInfo*, const int64_t*, size_t)>(kSetDimensions)(
        info, shape.dims, shape.rank);
  }
  if (!status && shape.rank) {
    status = function<OrtStatus* (*)(OrtTensorTypeAndShapeInfo*, const char**, size_t)>(kSetSymbolicDimensions)(
        info, names, shape.rank);
  }
  if (!status) {
    status = function<OrtStatus* (*)(OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo*)>(
        kShapeInferContextSetOutputTypeShape)(context, 0, info);
  }
  function<void (*)(OrtTensorTypeAndShapeInfo*)>(kReleaseTensorTypeAndShapeInfo)(info);
  return status;
}

}  // namespace onnxq
