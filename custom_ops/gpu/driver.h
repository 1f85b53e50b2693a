// The few functions of libcuda that launch a kernel. They are looked up when a GPU operator is made: nothing of CUDA is
// needed to build or to load this library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxq::gpu {

// CUtensorMap (cuda.h).
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

// What a tensor map says of a tensor in device memory, the innermost dimension first.
struct Tensor {
  int element_bytes;  // 1, 2, 4 or 8
  uint32_t rank;      // 2 or 3
  uint64_t dims[3];
  uint64_t strides[2];  // bytes between neighbours, of every dimension but the innermost
  uint32_t box[3];      // what one copy takes
  bool swizzle;         // with CU_TENSOR_MAP_SWIZZLE_128B
};

struct Launch {
  void* function;  // CUfunction
  uint32_t grid[2];
  uint32_t block;
  uint32_t shared_bytes;
  void* stream;  // CUstream
  bool early;    // may start while the kernel before it still runs (programmatic dependent launch)
};

class Driver {
 public:
  // Null where this machine has no libcuda, or one older than CUDA 12.
  static const Driver* get();

  // Results are CUresult: 0, or an error that `error_name` names.
  int encode(const Tensor& tensor, const void* address, TensorMap* map) const;
  int launch(const Launch& launch, void** parameters) const;
  const char* error_name(int error) const;

 private:
  bool load();

  int (*encode_)(TensorMap*, int, uint32_t, void*, const uint64_t*, const uint64_t*, const uint32_t*, const uint32_t*,
                 int, int, int, int) = nullptr;
  int (*launch_)(const void*, void*, void**, void**) = nullptr;
  int (*error_name_)(int, const char**) = nullptr;
};

}  // namespace onnxq::gpu
