#include "product.h"

#include <cstdio>

#include "driver.h"

namespace onnxq::gpu {
namespace {

constexpr int64_t kMaxInt = 0x7fffffff;

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

const Driver* find_driver(char* message, size_t size) {
  const Driver* driver = Driver::get();
  if (!driver) snprintf(message, size, "libcuda.so.1 cannot be loaded, or is older than CUDA 12");
  return driver;
}

bool encode(const Driver& driver, const char* what, const Tensor& tensor, const void* address, TensorMap* map,
            char* message, size_t size) {
  const int error = driver.encode(tensor, address, map);
  if (error) {
    snprintf(message, size, "cuTensorMapEncodeTiled for %s at %p: %s", what, address, driver.error_name(error));
  }
  return !error;
}

bool launch(const Driver& driver, const char* what, const Launch& how, void** parameters, char* message, size_t size) {
  const int error = driver.launch(how, parameters);
  if (error) {
    snprintf(message, size, "cuLaunchKernelEx of %s, grid %u x %u, block %u, %u bytes of shared memory: %s", what,
             how.grid[0], how.grid[1], how.block, how.shared_bytes, driver.error_name(error));
  }
  return !error;
}

// 256 threads of four numbers, as the head of pieces.cu says.
bool launch_pieces(const char* what, void* function, int64_t count, void* stream, void** parameters, char* message,
                   size_t size) {
  const Driver* driver = find_driver(message, size);
  if (!driver) return false;
  const int64_t blocks = divide_up(count, 1024);
  if (blocks > kMaxInt) {
    snprintf(message, size, "%lld numbers are too many for one launch", static_cast<long long>(count));
    return false;
  }
  return launch(*driver, what, {function, {static_cast<uint32_t>(blocks), 1}, 256, 0, stream, false}, parameters,
                message, size);
}

}  // namespace

const Kernel* Kernels::for_rows(int64_t rows) const {
  for (int i = 0; i < count; ++i) {
    if (rows <= each[i].max_rows) return &each[i];
  }
  return nullptr;
}

bool multiply(const Kernel& kernel, const Weight& weight, const Rows& rows, char* message, size_t size) {
  const Driver* driver = find_driver(message, size);
  if (!driver) return false;
  const int64_t M = rows.M, N = weight.N, K = weight.K;
  const int64_t across = divide_up(N, kernel.rows) * kernel.split, down = divide_up(M, kernel.columns);
  if (M > kMaxInt || N > kMaxInt || K > kMaxInt || across * down > kMaxInt || (!kernel.is_tile && down > 65535)) {
    snprintf(message, size, "%lld rows of x are too many for one launch", static_cast<long long>(M));
    return false;
  }
  const auto u64 = [](int64_t value) { return static_cast<uint64_t>(value); };
  const auto u32 = [](int64_t value) { return static_cast<uint32_t>(value); };
  const uint32_t stage_k = u32(kernel.along_k), block_rows = u32(kernel.rows);
  const int64_t unit = weight.unit_bytes, units = divide_up(K, 128);

  // Dimensions [64, M, K / 64] put the rows of a slab of 64 k, one line of the swizzle each, side by side. A last unit may have one
  // slab only: the other one arrives as zeros, and so do scales past the end.
  const uint32_t lines = u32(kernel.is_tile || M > kernel.columns ? kernel.columns : M);
  const Tensor on_x{2, 3, {64, u64(M), u64(K / 64)}, {u64(2 * K), 128}, {64, lines, 2 * stage_k}, true};
  const Tensor on_packed{8, 3, {u64(unit / 8), u64(units), u64(N / 16)}, {u64(unit), u64(unit * units)},
                         {u32(unit / 8), stage_k, block_rows / 16}, false};
  TensorMap x, packed, scale, zero;
  if (!encode(*driver, "x", on_x, rows.x, &x, message, size)) return false;
  if (!encode(*driver, "the weight", on_packed, weight.packed, &packed, message, size)) return false;
  scale = zero = packed;  // read only where there are groups
  if (weight.group) {
    const uint64_t groups = u64(divide_up(K, weight.group));
    const uint32_t stage_groups = weight.group <= 128 ? stage_k * 128 / u32(weight.group) : 1;
    Tensor on_scale{weight.scale_bytes, 2, {u64(N), groups}, {u64(N * weight.scale_bytes)},
                    {block_rows, stage_groups}, false};
    if (!encode(*driver, "the scales", on_scale, weight.scale, &scale, message, size)) return false;
    if (weight.zero_points) {
      on_scale.element_bytes = 1;
      on_scale.strides[0] = u64(N);
      if (!encode(*driver, "the zero points", on_scale, weight.zero, &zero, message, size)) return false;
    }
  }
  int32_t numbers[] = {static_cast<int32_t>(M), static_cast<int32_t>(N), static_cast<int32_t>(K)};
  const void* pointers[] = {weight.packed, weight.scale, weight.zero, rows.bias, rows.y};
  void* parameters[] = {&x,           &packed,      &scale,       &zero,       &pointers[0], &pointers[1],
                        &pointers[2], &pointers[3], &pointers[4], &numbers[0], &numbers[1],  &numbers[2]};
  Launch how{kernel.function, {u32(across), u32(down)}, u32(kernel.block), u32(kernel.shared_bytes), rows.stream,
             rows.early != 0};
  if (kernel.is_tile) {
    how.grid[0] = u32(across * down);
    how.grid[1] = 1;
  }
  return launch(*driver, "a product", how, parameters, message, size);
}

bool look_up(void* function, const Weight& weight, const Lookup& lookup, char* message, size_t size) {
  const Driver* driver = find_driver(message, size);
  if (!driver) return false;
  if (lookup.count > kMaxInt || weight.N > kMaxInt || weight.K > kMaxInt) {
    snprintf(message, size, "%lld indices are too many for one launch", static_cast<long long>(lookup.count));
    return false;
  }
  const void* pointers[] = {weight.packed, weight.scale, weight.zero, lookup.indices, lookup.y};
  int32_t numbers[] = {static_cast<int32_t>(lookup.columns), static_cast<int32_t>(weight.N),
                       static_cast<int32_t>(weight.K), lookup.wide};
  void* parameters[] = {&pointers[0], &pointers[1], &pointers[2], &pointers[3], &pointers[4],
                        &numbers[0],  &numbers[1],  &numbers[2],  &numbers[3]};
  // A block takes 32 units of 128 k, as the head of lookup.cu says.
  const uint32_t down = static_cast<uint32_t>(divide_up(weight.K, 32 * 128));
  const Launch how{function, {static_cast<uint32_t>(lookup.count), down}, 128, 0, lookup.stream, false};
  return launch(*driver, "look_up", how, parameters, message, size);
}

bool split_float32(const Kernels& kernels, const void* x, void* pieces, int64_t count, void* stream, char* message,
                   size_t size) {
  long long numbers = count;
  void* parameters[] = {&x, &pieces, &numbers};
  return launch_pieces("split_float32", kernels.split_float32, count, stream, parameters, message, size);
}

bool sum_pieces(const Kernels& kernels, const void* sums, const Rows& rows, int64_t N, char* message, size_t size) {
  long long numbers = rows.M * N;
  int32_t columns = static_cast<int32_t>(N);
  const void* pointers[] = {sums, rows.bias, rows.y};
  void* parameters[] = {&pointers[0], &pointers[1], &pointers[2], &numbers, &columns};
  return launch_pieces("sum_pieces", kernels.sum_pieces, numbers, rows.stream, parameters, message, size);
}

}  // namespace onnxq::gpu
