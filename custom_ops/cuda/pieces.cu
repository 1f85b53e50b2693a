// float32 activations for products that take 16 bits: each number is three bfloat16 that add up to it, exactly.
//
//   macros   none
//   split_float32: pieces[3][count] of x[count]; grid (ceil(count / 1024)), block 256
//   sum_pieces:    y[count] = sums[0] + sums[1] + sums[2] of sums[3][count], plus bias[N] (may be null); the same grid and block
//   gate_pieces:   of the same sums, whose N columns are gate and up in turn, 16 each: y[count / 2] = silu(gate) * up; half the grid
//   needs    count and N multiples of 4 (of 32 for gate_pieces), everything aligned to 16 bytes
#include <cuda_bf16.h>

typedef unsigned int u32;
typedef unsigned short u16;

// Eight bits of significand each: what is cut off is left to the next piece. Infinity and NaN stand in the first alone.
__device__ __forceinline__ u16 cut(float& rest) {
  const u32 bits = __float_as_uint(rest);
  if ((bits & 0x7f800000u) == 0x7f800000u) {
    rest = 0.f;
    return static_cast<u16>(bits >> 16 | ((bits & 0x7fffffu) != 0 ? 0x40u : 0u));
  }
  rest -= __uint_as_float(bits & 0xffff0000u);
  return static_cast<u16>(bits >> 16);
}

extern "C" __global__ void __launch_bounds__(256) split_float32(const float* __restrict__ x, u16* __restrict__ pieces, long long count) {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  const long long at = (static_cast<long long>(blockIdx.x) * 256 + threadIdx.x) * 4;
  if (at >= count) return;
  float4 four = *reinterpret_cast<const float4*>(x + at);
#pragma unroll
  for (int piece = 0; piece < 3; piece++) {
    const ushort4 out = make_ushort4(cut(four.x), cut(four.y), cut(four.z), cut(four.w));
    *reinterpret_cast<ushort4*>(pieces + piece * count + at) = out;
  }
}

// Four of the numbers, the smallest pieces first.
__device__ __forceinline__ float4 sum_of(const float* sums, const float* bias, long long count, int N, long long at) {
  const float4 a = *reinterpret_cast<const float4*>(sums + at), b = *reinterpret_cast<const float4*>(sums + count + at);
  const float4 c = *reinterpret_cast<const float4*>(sums + 2 * count + at);
  const float4 plus = bias == nullptr ? make_float4(0.f, 0.f, 0.f, 0.f) : *reinterpret_cast<const float4*>(bias + at % N);
  return make_float4(c.x + b.x + a.x + plus.x, c.y + b.y + a.y + plus.y, c.z + b.z + a.z + plus.z, c.w + b.w + a.w + plus.w);
}

extern "C" __global__ void __launch_bounds__(256) sum_pieces(const float* __restrict__ sums, const float* __restrict__ bias,
                                                               float* __restrict__ y, long long count, int N) {
  const long long at = (static_cast<long long>(blockIdx.x) * 256 + threadIdx.x) * 4;
  if (at < count) *reinterpret_cast<float4*>(y + at) = sum_of(sums, bias, count, N, at);
}

__device__ __forceinline__ float gated(float gate, float up) { return gate / (1.f + expf(-gate)) * up; }

extern "C" __global__ void __launch_bounds__(256) gate_pieces(const float* __restrict__ sums, const float* __restrict__ bias,
                                                                float* __restrict__ y, long long count, int N) {
  const long long to = (static_cast<long long>(blockIdx.x) * 256 + threadIdx.x) * 4, at = to / 16 * 32 + to % 16;
  if (at >= count) return;
  const float4 gate = sum_of(sums, bias, count, N, at), up = sum_of(sums, bias, count, N, at + 16);
  *reinterpret_cast<float4*>(y + to) = make_float4(gated(gate.x, up.x), gated(gate.y, up.y), gated(gate.z, up.z), gated(gate.w, up.w));
}
