// y[M, N] = x[M, K] @ W: few columns of activations, bound by the bytes of W. Tensor cores through mma.sync, W as A operand.
//
// A block computes ROWS = 16 * RW * WR rows of N for 8 * NT rows of x; the SPLIT blocks of a cluster share K. One thread copies
// weights, activations and group scales into a ring of STAGES stages through tensor maps; WR * WK warps compute: each takes RW
// units of 16 rows at one of the WK places along K of a stage. Sums meet in shared memory, in a fixed order: results repeat.
//
//   macros   those of common.cuh, and NT (1, 2, 4, 8), RW, WR, WK, STAGES, SPLIT (1, 2, 4, 8), BULK (copy weights without a map),
//            X_ROWS (rows of x that a stage has room for: 8 * NT, or less where no launch has more),
//            AHEAD (1: decode the weights of a stage before its activations are there, and so before the kernel before is done; takes
//            32 * RW registers)
//   grid     (ceil(N / ROWS) * SPLIT, ceil(M / (8 * NT)))
//   block    THREADS     shared bytes  BYTES
//   maps     x: [K / 64, M, 64] 16-bit, box [2 * WK, min(M, 8 * NT), 64], 128-byte swizzle
//            weights: [N / 16, ceil(K / 128), UNIT / 8] 64-bit, box [RW * WR, WK, all]; not read where BULK is 1
//            scales: [groups, N], box [groups of a stage, or 1 where a group is longer than 128, ROWS]; not read where GROUP is 0
//            zeros: the same of zero points, 8-bit; not read where ZERO or GROUP is 0
//   needs    M <= X_ROWS unless X_ROWS is 8 * NT, N % 16 == 0, K % 64 == 0, x, w and scale aligned to 16 bytes, y to 16, M > 0
#include "common.cuh"

// Two warpgroups with many sums take the registers of a third, which copies: nine warps would be given as many as twelve.
constexpr int WARPS = WR * WK;
constexpr bool HAND_OVER = WARPS == 8 && RW * NT >= 14;
constexpr int THREADS = HAND_OVER ? 384 : 32 * (WARPS + 1), REGISTERS = 232, COPY_REGISTERS = 40;
constexpr int STRIPS = RW * WR, ROWS = 16 * STRIPS, COLUMNS = 8 * NT;
// x lies in lines of 64 k, [slab of 64 k][row]. There is room for the lines past the last row that ldmatrix reads.
constexpr int X_BYTES = (X_ROWS * (2 * WK - 1) + COLUMNS) * 128, W_BYTES = STRIPS * WK * UNIT;
// Scales of a stage come in one box where each unit has its own, which must start at a multiple of 128 bytes, else in one a unit.
constexpr int BOXES = SHARE > 1 ? WK : 1, S_BYTES = GROUP ? WK / BOXES * SUB * ROWS * static_cast<int>(sizeof(Scale)) : 0;
constexpr int S_PITCH = (S_BYTES + 127) / 128 * 128;
constexpr int Z_BYTES = GROUP && ZERO ? WK / BOXES * SUB * ROWS : 0, Z_PITCH = (Z_BYTES + 127) / 128 * 128;
constexpr int STAGE = (X_BYTES + W_BYTES + BOXES * (S_PITCH + Z_PITCH) + 1023) / 1024 * 1024;
// Tensor-core products on one accumulator wait for each other: with few accumulators, even and odd steps have their own.
constexpr int CHAINS = NT * RW < 4 ? 2 : 1;
constexpr int SUM_BYTES = WK * COLUMNS * (ROWS + 4) * 4;
constexpr int RING = STAGES * STAGE > SUM_BYTES ? STAGES * STAGE : SUM_BYTES;
constexpr int BARRIERS = 32 * STAGES;
constexpr int BYTES = RING + BARRIERS + 8 * ROWS;
// A block of the next kernel should fit beside this one's. Its shared memory does, or not; where the registers that are needed at
// least leave room as well, ptxas has to keep to it.
constexpr int NEEDED = 4 * RW * NT * (GROUP ? 1 + CHAINS : CHAINS) + RW * (UNIT / 128 + 32 * AHEAD) + 32;
constexpr int GIVEN = (THREADS + 127) / 128 * 128;  // registers are given out for so many threads
constexpr int BLOCKS = 2 * (BYTES + 1024) <= 233472 && NEEDED * 2 * GIVEN <= 65536 ? 2 : 1;

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

extern "C" __global__ void __launch_bounds__(GIVEN, BLOCKS)
#if SPLIT > 1
__cluster_dims__(SPLIT, 1, 1)
#endif
matmul_stream(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights,
              const __grid_constant__ TensorMap scales, const __grid_constant__ TensorMap zeros, const u8* __restrict__ w,
              const Scale* __restrict__ scale, const u8* __restrict__ zero, const Value* __restrict__ bias, Result* __restrict__ y, int M,
              int N, int K) {
  extern __shared__ __align__(1024) u8 ring[];
  u64* full = reinterpret_cast<u64*>(ring + RING);
  u64* ready = full + STAGES;
  u64* taken = ready + STAGES;
  u64* empty = taken + STAGES;
  float* factors = reinterpret_cast<float*>(ring + RING + BARRIERS);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int rank = blockIdx.x % SPLIT, strip0 = blockIdx.x / SPLIT * STRIPS, m0 = blockIdx.y * COLUMNS;
  const int units = (K + 127) / 128, chunks = (units + WK - 1) / WK;
  const int first = chunks * rank / SPLIT, count = chunks * (rank + 1) / SPLIT - first;
  const int strips = min(STRIPS, N / 16 - strip0), columns = min(COLUMNS, M - m0), box = min(COLUMNS, M);

  if (threadIdx.x == 0) {
    prefetch(&x);
    for (int s = 0; s < STAGES; s++) {
      barrier_init(full + s, 1);
      barrier_init(ready + s, 1);
      barrier_init(taken + s, 32 * WARPS);
      barrier_init(empty + s, 32 * WARPS);
    }
    fence_barrier_init();
  }
  __syncthreads();

  float* sums = reinterpret_cast<float*>(ring);
  if (warp >= WARPS) {
    if constexpr (HAND_OVER) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COPY_REGISTERS));
    if (warp == WARPS) {
    const u64 once = stream_once();
    auto copy_weights = [&](int i) {
      u8* stage = ring + i % STAGES * STAGE + X_BYTES;
      u64* bar = full + i % STAGES;
      const int unit0 = (first + i) * WK;
#if BULK
      const u32 bytes = min(WK, units - unit0) * UNIT;
      if (lane == 0) barrier_expect(bar, strips * bytes + BOXES * (S_BYTES + Z_BYTES));
      __syncwarp();
      if (lane < strips)
        bulk_copy(stage + lane * WK * UNIT, w + (static_cast<size_t>(strip0 + lane) * units + unit0) * UNIT, bytes, bar, once);
#else
      if (lane == 0) {
        barrier_expect(bar, W_BYTES + BOXES * (S_BYTES + Z_BYTES));
        copy_box(stage, &weights, 0, unit0, strip0, bar, once);
      }
#endif
    };
    auto copy_scales = [&](int i) {
      if (GROUP && lane < BOXES) {
        u8* boxes = ring + i % STAGES * STAGE + X_BYTES + W_BYTES;
        const int group = ((first + i) * WK + lane) * SUB / SHARE;
        copy_box(boxes + lane * S_PITCH, &scales, strip0 * 16, group, full + i % STAGES);
        if (ZERO) copy_box(boxes + BOXES * S_PITCH + lane * Z_PITCH, &zeros, strip0 * 16, group, full + i % STAGES);
      }
    };
    auto copy_activations = [&](int i) {
      if (lane == 0) {
        barrier_expect(ready + i % STAGES, box * WK * 256);
        copy_box(ring + i % STAGES * STAGE, &x, 0, m0, (first + i) * WK * 2, ready + i % STAGES);
      }
    };
    const int ahead = min(count, STAGES);
    for (int i = 0; i < ahead; i++) {
      copy_weights(i);
      copy_scales(i);
    }
    wait_for_previous_kernels();
    allow_next_kernel();
    for (int i = 0; i < ahead; i++) copy_activations(i);
    for (int i = ahead; i < count; i++) {
      barrier_wait(taken + i % STAGES, (i / STAGES - 1) & 1);
      copy_weights(i);
      barrier_wait(empty + i % STAGES, (i / STAGES - 1) & 1);
      copy_scales(i);
      copy_activations(i);
    }
    }
    __syncthreads();
  } else {
    if constexpr (HAND_OVER) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
    load_factors<ROWS, 32 * WARPS>(factors, GROUP ? nullptr : scale + strip0 * 16, bias == nullptr ? nullptr : bias + strip0 * 16,
                                   strips * 16);
    float acc[CHAINS][RW][NT][4] = {};
    const int wr = warp / WK, wk = warp % WK;
    const int b_row = NT == 1 ? lane & 7 : (lane & 7) + (lane >> 4) * 8;
    const int b_piece = NT == 1 ? lane >> 3 : (lane >> 3) & 1;
    // The 16-byte pieces of a line are exchanged by its number, so that ldmatrix has no bank conflicts. Lines past the box give
    // columns that nobody stores.
    u32 piece[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int line = (wk * 2 + j / 4) * box + b_row;
      piece[j] = line * 128 + (((j % 4 * 2 + b_piece) ^ (line & 7)) << 4);
      asm volatile("" : "+r"(piece[j]));  // else it would be computed again for every stage
    }
    Minus minus[RW];
#pragma unroll
    for (int r = 0; r < RW; r++) {
      const int row = (wr * RW + r) * 16 + lane / 4;
      const bool has = ZERO && !GROUP && row < strips * 16;
      minus[r] = minus_of(has ? __ldcg(zero + strip0 * 16 + row) : 0, has ? __ldcg(zero + strip0 * 16 + row + 8) : 0);
    }
    // Warps past the end of K leave the last stage out. Nothing is copied behind it, so nobody waits for their arrivals.
    const int own = count - ((first + count - 1) * WK + wk >= units);
    for (int i = 0; i < own; i++) {
      const u8* stage = ring + i % STAGES * STAGE;
      barrier_wait(full + i % STAGES, (i / STAGES) & 1);
      Raw raw[RW];
#pragma unroll
      for (int r = 0; r < RW; r++) load_raw(raw[r], stage + X_BYTES + ((wr * RW + r) * WK + wk) * UNIT, lane);
      // Weights are in registers: the next ones may come. Every lane arrives, though one would do: it takes no longer, and racecheck
      // can follow it.
      __syncwarp();
      barrier_arrive(taken + i % STAGES);
      u32 a[RW][AHEAD ? 8 : 1][4];
      auto decode_step = [&](int j, int at) {
#if GROUP && ZERO
        if (j % (8 / SUB) == 0) {
          const u8* zz = stage + X_BYTES + W_BYTES + BOXES * S_PITCH + (BOXES > 1 ? wk * Z_PITCH : 0) +
                         ((BOXES > 1 ? 0 : wk * SUB) + j / (8 / SUB)) * ROWS + wr * RW * 16 + lane / 4;
#pragma unroll
          for (int r = 0; r < RW; r++) minus[r] = minus_of(zz[r * 16], zz[r * 16 + 8]);
        }
#endif
#pragma unroll
        for (int r = 0; r < RW; r++) decode(raw[r], j, a[r][at], minus[r]);
      };
      if constexpr (AHEAD) {
#pragma unroll
        for (int j = 0; j < 8; j++) decode_step(j, j);
#pragma unroll
        for (int r = 0; r < RW; r++)
#pragma unroll
          for (int e = 0; e < 32; e++) asm volatile("" : "+r"(a[r][e / 4][e % 4]));
      }
      barrier_wait(ready + i % STAGES, (i / STAGES) & 1);
#if GROUP
      float part[CHAINS][RW][NT][4] = {};
#else
      auto& part = acc;
#endif
      u32 b[NT > 1 ? NT * 2 : 4];
#pragma unroll
      for (int j = 0; j < 8; j++) {
        if constexpr (!AHEAD) decode_step(j, 0);
        if (NT == 1) {
          if (j % 2 == 0) ldmatrix(b, smem(stage) + piece[j]);
        } else {
#pragma unroll
          for (int n = 0; n < NT; n += 2) ldmatrix(b + n * 2, smem(stage) + piece[j] + n * 1024);
        }
#pragma unroll
        for (int r = 0; r < RW; r++) {
#pragma unroll
          for (int n = 0; n < NT; n++) {
            const int o = NT == 1 ? j % 2 * 2 : n * 2;
            mma(part[j % CHAINS][r][n], a[r][AHEAD ? j : 0], b[o], b[o + 1]);
          }
        }
#if GROUP
        if (j % (8 / SUB) == 8 / SUB - 1) {
          const Scale* ss = reinterpret_cast<const Scale*>(stage + X_BYTES + W_BYTES + (BOXES > 1 ? wk * S_PITCH : 0)) +
                            ((BOXES > 1 ? 0 : wk * SUB) + j / (8 / SUB)) * ROWS;
#pragma unroll
          for (int r = 0; r < RW; r++) {
            const float s0 = to_float(ss[(wr * RW + r) * 16 + lane / 4]), s1 = to_float(ss[(wr * RW + r) * 16 + lane / 4 + 8]);
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
              for (int e = 0; e < 4; e++) {
                acc[0][r][n][e] += (CHAINS > 1 ? part[0][r][n][e] + part[CHAINS - 1][r][n][e] : part[0][r][n][e]) * (e < 2 ? s0 : s1);
                part[0][r][n][e] = part[CHAINS - 1][r][n][e] = 0.f;
              }
            }
          }
        }
#endif
      }
      __syncwarp();
      barrier_arrive(empty + i % STAGES);
    }
    __syncthreads();  // the ring is free: sums go where it was
#pragma unroll
    for (int r = 0; r < RW; r++) {
#pragma unroll
      for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int row = (wr * RW + r) * 16 + lane / 4 + (e / 2) * 8, column = n * 8 + lane % 4 * 2 + e % 2;
          sums[(wk * COLUMNS + column) * (ROWS + 4) + row] = acc[0][r][n][e] + (CHAINS > 1 && !GROUP ? acc[CHAINS - 1][r][n][e] : 0.f);
        }
      }
    }
  }
  reduce_and_store<ROWS, WK, COLUMNS>(sums, factors, rank, y, m0, strip0, columns, strips * 16, N);
}
