// y[M, N] = x[M, K] @ W: few columns of activations, bound by the bytes of W. Tensor cores through mma.sync, W as A operand.
//
// A block computes ROWS = 16 * RW * WR rows of N for 8 * NT rows of x; the SPLIT blocks of a cluster share K. One warp copies
// weights, activations and group scales into a ring of STAGES stages with bulk copies; WR * WK warps compute: each takes RW
// units of 16 rows at one of the WK places along K of a stage. Sums meet in shared memory, in a fixed order: results repeat.
//
//   macros   those of common.cuh, and NT (1, 2, 4, 8), RW, WR, WK, STAGES, SPLIT (1, 2, 4, 8)
//   grid     (ceil(N / ROWS) * SPLIT, ceil(M / (8 * NT)))     block  32 * (WR * WK + 1)     shared bytes  see `bytes` below
//   needs    N % 16 == 0, K % 128 == 0, x aligned to 16 bytes, scale to 16, y to 8, M > 0
#include "common.cuh"

constexpr int WARPS = WR * WK, STRIPS = RW * WR, ROWS = 16 * STRIPS, COLUMNS = 8 * NT;
constexpr int X_PITCH = WK * 256 + 16;  // 16 bytes apart in the banks, so that ldmatrix has no conflicts
constexpr int W_BYTES = STRIPS * WK * UNIT, X_BYTES = COLUMNS * X_PITCH;
constexpr int S_BYTES = GROUP ? WK * SUB * ROWS * static_cast<int>(sizeof(Scale)) : 0;
constexpr int STAGE = (W_BYTES + X_BYTES + S_BYTES + 127) / 128 * 128;
constexpr int SUM_BYTES = WK * COLUMNS * (ROWS + 4) * 4;
constexpr int RING = STAGES * STAGE > SUM_BYTES ? STAGES * STAGE : SUM_BYTES;
// bytes = RING + 16 * STAGES

__device__ __forceinline__ void mma(float* c, const u32* a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." MMA_TYPE "." MMA_TYPE
               ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void ldmatrix(u32* r, u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

extern "C" __global__ void __launch_bounds__(32 * (WARPS + 1))
#if SPLIT > 1
__cluster_dims__(SPLIT, 1, 1)
#endif
matmul_stream(const Value* __restrict__ x, const u8* __restrict__ w, const Scale* __restrict__ scale,
              const Value* __restrict__ bias, Value* __restrict__ y, int M, int N, int K) {
  extern __shared__ __align__(128) u8 ring[];
  u64* full = reinterpret_cast<u64*>(ring + RING);
  u64* empty = full + STAGES;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int rank = blockIdx.x % SPLIT, strip0 = blockIdx.x / SPLIT * STRIPS, m0 = blockIdx.y * COLUMNS;
  const int units = K / 128, chunks = (units + WK - 1) / WK;
  const int first = chunks * rank / SPLIT, count = chunks * (rank + 1) / SPLIT - first;
  const int strips = min(STRIPS, N / 16 - strip0), columns = min(COLUMNS, M - m0);

  allow_next_kernel();
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, WARPS);
    }
    fence_barrier_init();
  }
  __syncthreads();

  float acc[RW][NT][4] = {};
  if (warp == WARPS) {
    const u64 once = stream_once();
    auto weights = [&](int i) {
      u8* stage = ring + i % STAGES * STAGE;
      u64* bar = full + i % STAGES;
      const int unit0 = (first + i) * WK, valid = min(WK, units - unit0);
      const int scales = GROUP ? valid * SUB : 0, scale_bytes = strips * 16 * static_cast<int>(sizeof(Scale));
      if (lane == 0) barrier_expect(bar, strips * valid * UNIT + columns * valid * 256 + scales * scale_bytes);
      __syncwarp();
      for (int s = lane; s < strips; s += 32)
        bulk_copy(stage + s * WK * UNIT, w + (static_cast<size_t>(strip0 + s) * units + unit0) * UNIT, valid * UNIT, bar, once);
      for (int s = lane; s < scales; s += 32) {
        const int group = SUB > 1 ? unit0 * SUB + s : (unit0 + s) / SHARE;
        bulk_copy(stage + W_BYTES + X_BYTES + s * ROWS * static_cast<int>(sizeof(Scale)),
                  scale + static_cast<size_t>(group) * N + strip0 * 16, scale_bytes, bar, once);
      }
    };
    auto activations = [&](int i) {
      u8* stage = ring + i % STAGES * STAGE + W_BYTES;
      const int unit0 = (first + i) * WK, valid = min(WK, units - unit0);
      for (int m = lane; m < columns; m += 32)
        bulk_copy(stage + m * X_PITCH, x + static_cast<size_t>(m0 + m) * K + unit0 * 128, valid * 256, full + i % STAGES);
    };
    const int ahead = min(count, STAGES);
    for (int i = 0; i < ahead; i++) weights(i);
    wait_for_previous_kernels();
    for (int i = 0; i < ahead; i++) activations(i);
    for (int i = ahead; i < count; i++) {
      barrier_wait(empty + i % STAGES, (i / STAGES - 1) & 1);
      weights(i);
      activations(i);
    }
  } else {
    const int wr = warp / WK, wk = warp % WK;
    const int b_row = NT == 1 ? lane & 7 : (lane & 7) + (lane >> 4) * 8;
    const int b_column = NT == 1 ? (lane >> 3) * 8 : ((lane >> 3) & 1) * 8;
    for (int i = 0; i < count; i++) {
      const u8* stage = ring + i % STAGES * STAGE;
      barrier_wait(full + i % STAGES, (i / STAGES) & 1);
      if ((first + i) * WK + wk < units) {
        Raw raw[RW];
#pragma unroll
        for (int r = 0; r < RW; r++) load_raw(raw[r], stage + ((wr * RW + r) * WK + wk) * UNIT, lane);
        const u32 xs = smem(stage + W_BYTES) + b_row * X_PITCH + wk * 256 + b_column * 2;
#if GROUP
        float part[RW][NT][4] = {};
#else
        auto& part = acc;
#endif
        u32 b[NT > 1 ? NT * 2 : 4];
#pragma unroll
        for (int j = 0; j < 8; j++) {
          if (NT == 1) {
            if (j % 2 == 0) ldmatrix(b, xs + j * 32);
          } else {
#pragma unroll
            for (int n = 0; n < NT; n += 2) ldmatrix(b + n * 2, xs + n * 8 * X_PITCH + j * 32);
          }
#pragma unroll
          for (int r = 0; r < RW; r++) {
            u32 a[4];
            decode(raw[r], j, a);
#pragma unroll
            for (int n = 0; n < NT; n++) {
              const int o = NT == 1 ? j % 2 * 2 : n * 2;
              mma(part[r][n], a, b[o], b[o + 1]);
            }
          }
#if GROUP
          if (j % (8 / SUB) == 8 / SUB - 1) {
            const Scale* ss = reinterpret_cast<const Scale*>(stage + W_BYTES + X_BYTES) + (wk * SUB + j / (8 / SUB)) * ROWS;
#pragma unroll
            for (int r = 0; r < RW; r++) {
              const float s0 = to_float(ss[(wr * RW + r) * 16 + lane / 4]), s1 = to_float(ss[(wr * RW + r) * 16 + lane / 4 + 8]);
#pragma unroll
              for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                  acc[r][n][e] += part[r][n][e] * (e < 2 ? s0 : s1);
                  part[r][n][e] = 0.f;
                }
              }
            }
          }
#endif
        }
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(empty + i % STAGES);
    }
  }
  __syncthreads();  // the ring is free: sums go where it was

  float* sums = reinterpret_cast<float*>(ring);
  if (warp < WARPS) {
    const int wr = warp / WK, wk = warp % WK;
#pragma unroll
    for (int r = 0; r < RW; r++) {
#pragma unroll
      for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int row = (wr * RW + r) * 16 + lane / 4 + (e / 2) * 8, column = n * 8 + lane % 4 * 2 + e % 2;
          sums[(wk * COLUMNS + column) * (ROWS + 4) + row] = acc[r][n][e];
        }
      }
    }
  }
  reduce_and_store<ROWS, WK, COLUMNS>(sums, rank, scale + (GROUP ? 0 : strip0 * 16),
                                             bias == nullptr ? nullptr : bias + strip0 * 16,
                                             y + static_cast<size_t>(m0) * N + strip0 * 16, columns, strips * 16, N);
}
