#include "driver.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace onnxq::gpu {
namespace {

// Values of enumerations in cuda.h.
constexpr int kUint8 = 0, kUint16 = 1, kUint32 = 2, kUint64 = 4;  // CUtensorMapDataType
constexpr int kInterleaveNone = 0, kSwizzleNone = 0, kSwizzle128B = 3, kPromoteL2To256B = 3, kFillZeros = 0;
constexpr int kProgrammaticStreamSerialization = 6;  // CUlaunchAttributeID

// CUlaunchAttribute and CUlaunchConfig.
struct Attribute {
  int id;
  char pad[4];
  int value[16];
};
struct Config {
  uint32_t grid[3], block[3], shared_bytes;
  void* stream;
  Attribute* attributes;
  uint32_t attribute_count;
};

int data_type(int bytes) { return bytes == 1 ? kUint8 : bytes == 2 ? kUint16 : bytes == 4 ? kUint32 : kUint64; }

}  // namespace

bool Driver::load() {
#if defined(_WIN32)
  return false;
#else
  // Never closed: kernels outlive whoever asked first.
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) return false;
  encode_ = reinterpret_cast<decltype(encode_)>(dlsym(library, "cuTensorMapEncodeTiled"));
  launch_ = reinterpret_cast<decltype(launch_)>(dlsym(library, "cuLaunchKernelEx"));
  error_name_ = reinterpret_cast<decltype(error_name_)>(dlsym(library, "cuGetErrorName"));
  return encode_ && launch_ && error_name_;
#endif
}

const Driver* Driver::get() {
  static Driver driver;
  static const bool loaded = driver.load();
  return loaded ? &driver : nullptr;
}

int Driver::encode(const Tensor& tensor, const void* address, TensorMap* map) const {
  constexpr uint32_t kOnes[3] = {1, 1, 1};
  return encode_(map, data_type(tensor.element_bytes), tensor.rank, const_cast<void*>(address), tensor.dims,
                 tensor.strides, tensor.box, kOnes, kInterleaveNone, tensor.swizzle ? kSwizzle128B : kSwizzleNone,
                 kPromoteL2To256B, kFillZeros);
}

int Driver::launch(const Launch& launch, void** parameters) const {
  Attribute attribute{kProgrammaticStreamSerialization, {}, {1}};
  const Config config{{launch.grid[0], launch.grid[1], 1}, {launch.block, 1, 1}, launch.shared_bytes, launch.stream,
                      &attribute, launch.early ? 1u : 0u};
  return launch_(&config, launch.function, parameters, nullptr);
}

const char* Driver::error_name(int error) const {
  const char* name = nullptr;
  return error_name_(error, &name) == 0 && name ? name : "an unknown error";
}

}  // namespace onnxq::gpu
