// weight[N, K] (K contiguous) = the values of a packed W, times their scales: what a large product through cuBLAS reads.
//
//   macros   those of common.cuh; SPLIT must be 1
//   grid     (ceil(K / 128 * N / 16 / 8))     block  256     shared bytes  0
//   needs    N % 16 == 0, K % 128 == 0, weight aligned to 16 bytes
#include "common.cuh"

constexpr int PITCH = 272;  // bytes between rows of a unit: 16 apart in the banks

extern "C" __global__ void __launch_bounds__(256)
dequantize(const u8* __restrict__ w, const Scale* __restrict__ scale, Value* __restrict__ weight, int N, int K) {
  __shared__ __align__(16) u8 rows[8][16 * PITCH];
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, units = K / 128;
  const int unit = blockIdx.x * 8 + warp;
  wait_for_previous_kernels();
  allow_next_kernel();
  if (unit >= units * (N / 16)) return;
  const int strip = unit / units, k0 = unit % units * 128, g = lane >> 2, t = lane & 3;
  Raw raw;
  load_raw(raw, w + static_cast<size_t>(unit) * UNIT, lane);
#pragma unroll
  for (int j = 0; j < 8; j++) {
    u32 a[4];
    decode(raw, j, a);
    const int group = GROUP ? (k0 + j * 16) / GROUP : 0;
    const Scale* s = scale + static_cast<size_t>(group) * N + strip * 16 + g;
    const float factor[2] = {to_float(s[0]) * FACTOR, to_float(s[8]) * FACTOR};
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const Value* pair = reinterpret_cast<const Value*>(a + r);
      Value out[2];
      from_float(out[0], to_float(pair[0]) * factor[r & 1]);
      from_float(out[1], to_float(pair[1]) * factor[r & 1]);
      *reinterpret_cast<u32*>(rows[warp] + (g + (r & 1) * 8) * PITCH + j * 32 + (r >> 1) * 16 + t * 4) =
          *reinterpret_cast<u32*>(out);
    }
  }
  __syncwarp();
  Value* to = weight + static_cast<size_t>(strip) * 16 * K + k0;
#pragma unroll
  for (int i = lane; i < 256; i += 32) {
    const int row = i >> 4, piece = i & 15;
    *reinterpret_cast<uint4*>(to + static_cast<size_t>(row) * K + piece * 8) =
        *reinterpret_cast<const uint4*>(rows[warp] + row * PITCH + piece * 16);
  }
}
