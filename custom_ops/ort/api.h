// onnxruntime's functions with their types. A status that is not null is an error; whoever receives it returns it.
#pragma once

#include "abi.h"

#define ONNXQ_RETURN_IF_ERROR(expression)                     \
  do {                                                        \
    if (OrtStatus* status_ = (expression)) return status_; \
  } while (0)

namespace onnxq {

struct Shape {
  static constexpr size_t kMaxRank = 16;
  size_t rank = 0;
  int64_t dims[kMaxRank] = {};

  int64_t elements() const {
    int64_t product = 1;
    for (size_t i = 0; i < rank; ++i) product *= dims[i];
    return product;
  }
};

class Api {
 public:
  Api() = default;
  explicit Api(OrtApi table) : table_(table) {}

  // A status with a formatted message.
  OrtStatus* error(ErrorCode code, const char* format, ...) const
#if defined(__GNUC__)
      __attribute__((format(printf, 3, 4)))
#endif
      ;
  void ignore(OrtStatus* status) const;

  // Session options and operators.
  OrtStatus* create_domain(const char* name, OrtCustomOpDomain** domain) const;
  OrtStatus* add_operator(OrtCustomOpDomain* domain, const OrtCustomOp* op) const;
  OrtStatus* add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const;
  OrtStatus* has_entry(const OrtSessionOptions* options, const char* key, int* has) const;
  OrtStatus* add_entry(OrtSessionOptions* options, const char* key, const char* value) const;

  // Attributes and constant inputs of a node. `attribute` says whether there is one of that name and type.
  bool attribute(const OrtKernelInfo* info, const char* name, int64_t* value) const;
  bool attribute(const OrtKernelInfo* info, const char* name, Shape* value) const;
  OrtStatus* constant_input(const OrtKernelInfo* info, size_t index, const OrtValue** value) const;
  void node_name(const OrtKernelInfo* info, char* name, size_t size) const;

  // Tensors.
  OrtStatus* shape(const OrtValue* value, Shape* shape, ElementType* type = nullptr) const;
  OrtStatus* data(const OrtValue* value, const void** data) const;
  OrtStatus* input(const OrtKernelContext* context, size_t index, const OrtValue** value) const;
  OrtStatus* output(OrtKernelContext* context, size_t index, const Shape& shape, void** data) const;

  // On a GPU: the number of the device that holds a tensor, the stream of this run, and memory beside `like` for the
  // kernels of this stream, which is given back as soon as they are launched: the next on this stream may have it.
  OrtStatus* device(const OrtValue* value, int* device) const;
  OrtStatus* gpu_stream(const OrtKernelContext* context, void** stream) const;
  OrtStatus* scratch(const OrtKernelContext* context, const OrtValue* like, size_t bytes, void** memory) const;
  OrtStatus* free_scratch(const OrtKernelContext* context, const OrtValue* like, void* memory) const;

  // Calls function(user, 0 ... total - 1) on the threads of the session, and waits.
  OrtStatus* parallel_for(const OrtKernelContext* context, void (*function)(void*, size_t), size_t total,
                          void* user) const;

  // Shape inference: names of dimensions are null or empty where they have none, and dims -1 where they are open.
  OrtStatus* inferred_input(const OrtShapeInferContext* context, size_t index, Shape* shape, const char** names,
                            ElementType* type) const;
  bool inferred_attribute(const OrtShapeInferContext* context, const char* name, Shape* value) const;
  bool inferred_attribute(const OrtShapeInferContext* context, const char* name, int64_t* value) const;
  OrtStatus* set_inferred_output(OrtShapeInferContext* context, const Shape& shape, const char** names,
                                 ElementType type) const;

 private:
  template <class Function>
  Function function(Slot slot) const {
    return reinterpret_cast<Function>(table_[slot]);
  }

  bool read_inferred(const OrtShapeInferContext* context, const char* name, AttributeType type, void* value,
                     size_t* bytes) const;
  OrtStatus* read_shape(const OrtTensorTypeAndShapeInfo* info, Shape* shape, ElementType* type) const;
  OrtStatus* memory_info(const OrtValue* value, const OrtMemoryInfo** info) const;

  OrtApi table_ = nullptr;
};

}  // namespace onnxq
