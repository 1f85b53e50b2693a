// Rounding to the nearest value of a table, with the arithmetic of numpy: each operation rounded by itself.
//
// A table is `count` values, ascending, and between two neighbours the key of the least number that goes to the upper one.
// Keys order floats by their bits, so that -0 lies below +0.

constexpr int kMostRows = 64, kMostValues = 256, kThreads = 32;

__device__ inline unsigned key_of(float x) {
  const unsigned bits = __float_as_uint(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// How many of the keys are not above that of x.
__device__ inline int place_of(float x, const unsigned* keys, int count) {
  const unsigned key = key_of(x);
  int low = 0, high = count - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (keys[middle] <= key) low = middle + 1;
    else high = middle;
  }
  return low;
}

extern "C" __global__ void round_all(const float* x, long long size, const unsigned* keys, const unsigned char* codes_of,
                                     const float* values_of, int count, unsigned char* codes, float* values) {
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long at = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; at < size; at += step) {
    const int place = place_of(x[at], keys, count);
    codes[at] = codes_of[place];
    values[at] = values_of[place];
  }
}

// `round_block` of solve/in_turn.py for at most 64 rows; a thread has a column. `groups` has the row of `scale` and `zero`,
// which have `scales` columns (1 or all), for each row; `zero` may be null.
extern "C" __global__ void __launch_bounds__(kThreads)
    round_block(const float* target, const float* pull, const float* coupling, int rows, int columns, const float* scale,
                const float* zero, int scales, const int* groups, const unsigned* keys, const unsigned char* codes_of,
                const float* values_of, int count, unsigned char* codes, float* values) {
  __shared__ float couplings[kMostRows * kMostRows], moves[kMostRows * kThreads], table[kMostValues];
  __shared__ unsigned bounds[kMostValues];
  for (int i = threadIdx.x; i < rows * rows; i += blockDim.x) couplings[i] = coupling[i];
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    table[i] = values_of[i];
    if (i + 1 < count) bounds[i] = keys[i];
  }
  __syncthreads();
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  for (int row = 0; row < rows; ++row) {
    const long long at = static_cast<long long>(row) * columns + column;
    float pulled = pull[at];
#pragma unroll 8
    for (int i = 0; i < row; ++i) {
      pulled = __fadd_rn(pulled, __fmul_rn(couplings[i * rows + row], moves[i * kThreads + threadIdx.x]));
    }
    const long long of = static_cast<long long>(groups[row]) * scales + (scales == 1 ? 0 : column);
    const float wanted = target[at], width = scale[of], shift = zero ? zero[of] : 0.0f;
    float units = __fdiv_rn(__fadd_rn(wanted, pulled), width);
    if (zero) units = __fadd_rn(units, shift);
    const int place = place_of(units, bounds, count);
    float value = table[place];
    if (zero) value = __fsub_rn(value, shift);
    value = __fmul_rn(value, width);
    moves[row * kThreads + threadIdx.x] = __fsub_rn(wanted, value);
    codes[at] = codes_of[place];
    values[at] = value;
  }
}
