// y[M, N] = x[M, K] @ W: many columns of activations, bound by arithmetic. Tensor cores through wgmma, W as A operand from
// registers, x as B operand from shared memory.
//
// A block computes ROWS = 64 * MB * GROUPS rows of N for COLUMNS rows of x; the SPLIT blocks of a cluster share K. One thread of
// the last warpgroup copies into a ring of STAGES stages of 128 k; GROUPS warpgroups compute MB blocks of 64 rows each: they decode
// the fragments of STEPS steps of 16 k while the tensor cores work on the STEPS before.
//
//   macros   those of common.cuh, and COLUMNS (16, 32, 64, 128, 256), MB, GROUPS, STAGES, SPLIT (1, 2, 4, 8), RESIDENT (blocks
//            a multiprocessor), STEPS (1, 2, 4), FOLD (multiply weights by their group's scale, rounding to 16 bits as the dense
//            weight would be, instead of each group's sum in fp32: half the accumulators)
//   grid     (ceil(N / ROWS) * ceil(M / COLUMNS) * SPLIT)       block  128 * (GROUPS + 1)      shared bytes  see `bytes` below
//   maps     x: [K / 64, M, 64] 16-bit, box [2, COLUMNS, 64], 128-byte swizzle
//            weights: [N / 16, ceil(K / 128), UNIT / 8] 64-bit, box [ROWS / 16, 1, all]
//            scales: [groups, N], box [SUB, ROWS]; not read where GROUP is 0
//            zeros: the same of zero points, 8-bit; not read where ZERO or GROUP is 0
//   needs    N % 16 == 0, K % 64 == 0, x, w and scale aligned to 16 bytes, y to 16, M > 0
#include "common.cuh"
#include "wgmma.cuh"

constexpr bool SUMS = GROUP > 0 && !FOLD;  // sums of groups are multiplied one by one
static_assert(!SUMS || 8 / SUB % STEPS == 0, "a group of scales ends with a group of products");

constexpr int ROWS = 64 * MB * GROUPS, STRIPS = ROWS / 16;
constexpr int X_BYTES = COLUMNS * 256, W_BYTES = STRIPS * UNIT;
constexpr int S_BYTES = GROUP ? SUB * ROWS * static_cast<int>(sizeof(Scale)) : 0;  // of one unit along K
constexpr int S_PITCH = (S_BYTES + 127) / 128 * 128;
constexpr int Z_BYTES = GROUP && ZERO ? SUB * ROWS : 0, Z_PITCH = (Z_BYTES + 127) / 128 * 128;
constexpr int STAGE = (X_BYTES + W_BYTES + S_PITCH + Z_PITCH + 1023) / 1024 * 1024;
constexpr int SUM_BYTES = COLUMNS * (ROWS + 4) * 4;
constexpr int RING = STAGES * STAGE > SUM_BYTES ? STAGES * STAGE : SUM_BYTES;
// bytes = RING + 16 * STAGES + 8 * ROWS
// The copying warpgroup hands its registers to the others. A multiprocessor has 65,536, given out in eights.
constexpr int ENTRY = 65536 / (RESIDENT * 128 * (GROUPS + 1)) / 8 * 8, COPY_REGISTERS = 40;
constexpr int REGISTERS = (ENTRY * (GROUPS + 1) - COPY_REGISTERS) / GROUPS / 8 * 8;
constexpr bool HAND_OVER = ENTRY < 200;
constexpr int RASTER = 8;  // tiles of M that run side by side, so that they find each other's weights in L2

extern "C" __global__ void __launch_bounds__(128 * (GROUPS + 1), RESIDENT)
#if SPLIT > 1
__cluster_dims__(SPLIT, 1, 1)
#endif
matmul_tile(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights,
            const __grid_constant__ TensorMap scales, const __grid_constant__ TensorMap zeros, const u8* __restrict__,
            const Scale* __restrict__ scale, const u8* __restrict__ zero, const Value* __restrict__ bias, Result* __restrict__ y, int M,
            int N, int K) {
  extern __shared__ __align__(1024) u8 ring[];
  u64* full = reinterpret_cast<u64*>(ring + RING);
  u64* empty = full + STAGES;
  float* factors = reinterpret_cast<float*>(empty + STAGES);
  const int warpgroup = threadIdx.x >> 7, warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
  const int rank = blockIdx.x % SPLIT, units = (K + 127) / 128;
  const int first = units * rank / SPLIT, count = units * (rank + 1) / SPLIT - first;

  const int tiles_m = (M + COLUMNS - 1) / COLUMNS, tiles_n = (N + ROWS - 1) / ROWS, raster = min(RASTER, tiles_m);
  const int tile = blockIdx.x / SPLIT, band = tile / (raster * tiles_n) * raster, wide = min(raster, tiles_m - band);
  const int within = tile % (raster * tiles_n);
  const int m0 = (band + within % wide) * COLUMNS, strip0 = within / wide * STRIPS;
  const int strips = min(STRIPS, N / 16 - strip0), columns = min(COLUMNS, M - m0);

  if (threadIdx.x == 0) {
    prefetch(&x);
    for (int s = 0; s < STAGES; s++) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, 4 * GROUPS);
    }
    fence_barrier_init();
  }
  __syncthreads();

  float* sums = reinterpret_cast<float*>(ring);
  if (warpgroup == GROUPS) {
    if constexpr (HAND_OVER) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COPY_REGISTERS));
    if ((threadIdx.x & 127) == 0) {
      const u64 once = stream_once();
      auto constants = [&](int i) {
        u8* stage = ring + i % STAGES * STAGE + X_BYTES;
        u64* bar = full + i % STAGES;
        barrier_expect(bar, X_BYTES + W_BYTES + S_BYTES + Z_BYTES);
        copy_box(stage, &weights, 0, first + i, strip0, bar, once);
        if (GROUP) copy_box(stage + W_BYTES, &scales, strip0 * 16, (first + i) * SUB / SHARE, bar);
        if (GROUP && ZERO) copy_box(stage + W_BYTES + S_PITCH, &zeros, strip0 * 16, (first + i) * SUB / SHARE, bar);
      };
      auto activations = [&](int i) {
        copy_box(ring + i % STAGES * STAGE, &x, 0, m0, (first + i) * 2, full + i % STAGES);
      };
      const int ahead = min(count, STAGES);
      for (int i = 0; i < ahead; i++) constants(i);
      wait_for_previous_kernels();
      allow_next_kernel();
      for (int i = 0; i < ahead; i++) activations(i);
      for (int i = ahead; i < count; i++) {
        barrier_wait(empty + i % STAGES, (i / STAGES - 1) & 1);
        constants(i);
        activations(i);
      }
    }
    __syncthreads();
  } else {
    if constexpr (HAND_OVER) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
    load_factors<ROWS, 128 * GROUPS, (GROUP > 0 && FOLD)>(factors, GROUP ? nullptr : scale + strip0 * 16, bias == nullptr ? nullptr : bias + strip0 * 16,
                                     strips * 16);
    // The first product of a chain of wgmma starts from zero by its own flag: an accumulator that ordinary instructions
    // set inside the pipeline would make ptxas run the products one after the other (C7515).
#if GROUP && !FOLD
    float acc[MB][COLUMNS / 2] = {}, part[MB][COLUMNS / 2];
#else
    float acc[MB][COLUMNS / 2];
    auto& part = acc;
#endif
    u32 a[2][STEPS][MB][4];
#if GROUP && FOLD
    u32 fold[MB][2];
#endif
    Minus minus[MB];
#pragma unroll
    for (int b = 0; b < MB; b++) {
      const int row = ((warpgroup * MB + b) * 4 + warp) * 16 + lane / 4;
      const bool own = ZERO && !GROUP && row < strips * 16;
      minus[b] = minus_of(own ? __ldcg(zero + strip0 * 16 + row) : 0, own ? __ldcg(zero + strip0 * 16 + row + 8) : 0);
    }
    for (int i = 0; i < count; i++) {
      const int slot = i % STAGES;
      const u8* stage = ring + slot * STAGE;
      barrier_wait(full + slot, (i / STAGES) & 1);
      Raw raw[MB];
#pragma unroll
      for (int b = 0; b < MB; b++)
        load_raw(raw[b], stage + X_BYTES + ((warpgroup * MB + b) * 4 + warp) * UNIT, lane);
      const u32 tile_x = wgmma_b(smem(stage));
#pragma unroll
      for (int j0 = 0; j0 < 8; j0 += STEPS) {
        auto& now = a[j0 / STEPS & 1];
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
#pragma unroll
          for (int b = 0; b < MB; b++) {
#if GROUP && ZERO
            if ((j0 + s) % (8 / SUB) == 0) {
              const u8* zz = stage + X_BYTES + W_BYTES + S_PITCH + (j0 + s) / (8 / SUB) * ROWS +
                             ((warpgroup * MB + b) * 4 + warp) * 16 + lane / 4;
              minus[b] = minus_of(zz[0], zz[8]);
            }
#endif
            decode(raw[b], j0 + s, now[s][b], minus[b]);
#if GROUP && FOLD
            if ((j0 + s) % (8 / SUB) == 0) {
              const Scale* ss = reinterpret_cast<const Scale*>(stage + X_BYTES + W_BYTES) + (j0 + s) / (8 / SUB) * ROWS +
                                ((warpgroup * MB + b) * 4 + warp) * 16 + lane / 4;
              fold[b][0] = pair_of(to_float(ss[0]));
              fold[b][1] = pair_of(to_float(ss[8]));
            }
#pragma unroll
            for (int r = 0; r < 4; r++) {
              if (FACTOR != 1.f) now[s][b][r] = times_pair(now[s][b][r], FACTOR_PAIR);
              now[s][b][r] = times_pair(now[s][b][r], fold[b][r & 1]);
            }
#endif
          }
        }
        // Complete before the products begin: what ptxas moves between them, it makes each wait for (C7519).
#pragma unroll
        for (int e = 0; e < STEPS * MB * 4; e++) asm volatile("" : "+r"(now[e / (MB * 4)][e / 4 % MB][e % 4]));
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
          const int j = j0 + s;
          const u64 tile_b = wgmma_b_at(tile_x, (j >> 2) * COLUMNS * 128 + (j & 3) * 32);
#pragma unroll
          for (int b = 0; b < MB; b++)
            Wgmma<COLUMNS>::run(part[b], now[s][b], tile_b, !SUMS ? i > 0 || j > 0 : j % (8 / SUB) != 0);
        }
        wgmma_commit();
#if GROUP && !FOLD
        if ((j0 + STEPS) % (8 / SUB) == 0) {
          wgmma_wait<0>();
          const Scale* ss = reinterpret_cast<const Scale*>(stage + X_BYTES + W_BYTES) + j0 / (8 / SUB) * ROWS;
#pragma unroll
          for (int b = 0; b < MB; b++) {
            const int row = ((warpgroup * MB + b) * 4 + warp) * 16 + lane / 4;
            const float s0 = to_float(ss[row]), s1 = to_float(ss[row + 8]);
#pragma unroll
            for (int e = 0; e < COLUMNS / 2; e++) acc[b][e] += part[b][e] * (e % 4 < 2 ? s0 : s1);
          }
        } else {
          wgmma_wait<1>();
        }
#else
        wgmma_wait<1>();  // the group before is done: its A registers, and the stage before, are free
        if (j0 == 0 && i > 0 && lane == 0) barrier_arrive(empty + (i - 1) % STAGES);
#endif
      }
#if GROUP && !FOLD
      __syncwarp();
      if (lane == 0) barrier_arrive(empty + slot);
#endif
    }
    wgmma_wait<0>();
    __syncthreads();  // the ring is free: sums go where it was
#pragma unroll
    for (int b = 0; b < MB; b++) {
#pragma unroll
      for (int e = 0; e < COLUMNS / 2; e++) {
        const int row = ((warpgroup * MB + b) * 4 + warp) * 16 + lane / 4 + (e / 2 % 2) * 8;
        const int column = e / 4 * 8 + lane % 4 * 2 + e % 2;
        sums[column * (ROWS + 4) + row] = count > 0 ? acc[b][e] : 0.f;
      }
    }
  }
  reduce_and_store<ROWS, 1, COLUMNS>(sums, factors, rank, y, m0, strip0, columns, strips * 16, N);
}
