// Columns of a weight in the layout `tiled2`, as rows of floats: what an embedding is read for.
//
//   macros   those of common.cuh; ZERO only says that there are zero points, which are subtracted here
//   grid     (indices, ceil(units along K / 32)), block 128: four threads a unit
//   needs    K a multiple of 64
#define SPLIT 1
#include "common.cuh"

constexpr int LENGTH = GROUP ? GROUP : 0x7fffffff;

struct alignas(2 * sizeof(Result)) Two {
  Result each[2];
};

__device__ __forceinline__ float value_of_code(u32 code) {
  return static_cast<float>(FORMAT == 3 && code >= 8 ? static_cast<int>(code) - 16 : static_cast<int>(code));
}

// y[index, K] of W[K, column], the column being indices[index], counted from the end where it is negative. `columns` are those of W
// that are no filling, `N` those that scales have.
extern "C" __global__ void __launch_bounds__(128)
    look_up(const u8* __restrict__ packed, const Scale* __restrict__ scale, const u8* __restrict__ zero,
            const void* __restrict__ indices, Result* __restrict__ y, int columns, int N, int K, int wide) {
  const int t = threadIdx.x % 4, unit = blockIdx.y * 32 + threadIdx.x / 4, units = (K + 127) / 128;
  if (unit >= units) return;
  const long long index = wide ? static_cast<const long long*>(indices)[blockIdx.x] : static_cast<const int*>(indices)[blockIdx.x];
  const long long column = index < 0 ? index + columns : index;
  const bool inside = column >= 0 && column < columns;
  Result* to = y + static_cast<size_t>(blockIdx.x) * K + unit * 128 + 2 * t;
  Raw raw;
  const int g = inside ? static_cast<int>(column % 8) : 0, upper = inside ? static_cast<int>(column / 8 % 2) : 0;
  const size_t strip = inside ? static_cast<size_t>(column / 16) : 0;
  load_raw(raw, packed + (strip * units + unit) * UNIT, 4 * g + t);
  const Minus minus = minus_of(0, 0);
#pragma unroll
  for (int j = 0; j < 8; j++) {
    if (unit * 128 + j * 16 >= K) break;  // a last unit may be half
    u32 a[4];
    decode(raw, j, a, minus);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      Value pair[2];
      const u32 bits = upper ? a[2 * half + 1] : a[2 * half];
      memcpy(pair, &bits, 4);
      // No group ends within 16 k.
      const size_t at = static_cast<size_t>((unit * 128 + j * 16) / LENGTH) * N + (inside ? column : 0);
      const float times = inside ? to_float(scale[at]) : 0.f, less = ZERO ? value_of_code(zero[at]) : 0.f;
      Two out;
#pragma unroll
      for (int i = 0; i < 2; i++) from_float(out.each[i], (to_float(pair[i]) * FACTOR - less) * times);
      *reinterpret_cast<Two*>(to + j * 16 + half * 8) = out;
    }
  }
}
