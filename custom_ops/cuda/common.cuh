// Shared by all kernels: the packed layout `tiled2` and its decoding, and thin wrappers around PTX.
// A kernel is compiled once a configuration; these macros choose it (docs/gpu_kernels.md has the table):
//   FORMAT   0 FP6 E3M2, 1 FP6 E2M3, 2 FP4 E2M1, 3 INT4, 4 UINT4
//   BF16     1: activations and results are bfloat16, 0: float16
//   SCALE    type of the scales: 0 float32, 1 float16, 2 bfloat16
//   GROUP    rows of K that share a scale: 0 for all of them, 16, 32, 64, or a multiple of 128
//   ZERO     1: integers have zero points, codes of one byte that lie as the scales do
//   WIDE     1: results are float32
//   GATED    1: strips of 16 columns of W are gate and up in turn; results are silu(gate) * up, half as many columns
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned char u8;

#if BF16
typedef __nv_bfloat16 Value;
#define MMA_TYPE "bf16"
#else
typedef __half Value;
#define MMA_TYPE "f16"
#endif
#if WIDE
typedef float Result;
#else
typedef Value Result;
#endif
#if SCALE == 0
typedef float Scale;
#elif SCALE == 1
typedef __half Scale;
#else
typedef __nv_bfloat16 Scale;
#endif

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void from_float(float& y, float x) { y = x; }
__device__ __forceinline__ void from_float(__half& y, float x) { y = __float2half_rn(x); }
__device__ __forceinline__ void from_float(__nv_bfloat16& y, float x) { y = __float2bfloat16_rn(x); }

// A unit is 16 rows of N by 128 of K: two or three planes of 512 bytes, in each of which a lane has four words.
constexpr bool SIX = FORMAT < 2;
constexpr int UNIT = SIX ? 1536 : 1024;
// Scales within a unit along K, and units along K that share one.
constexpr int SUB = GROUP > 0 && GROUP < 128 ? 128 / GROUP : 1;
constexpr int SHARE = GROUP > 128 ? GROUP / 128 : 1;

// fp16 patterns of minifloats are decoded without a multiply and stand for the value times 1 / FACTOR. bfloat16 has the
// exponent range of the fp32 accumulators, which would underflow: there the decoder multiplies.
constexpr float FACTOR = BF16 || FORMAT >= 3 ? 1.f : FORMAT == 0 ? 4096.f : 16384.f;
constexpr u32 FACTOR_PAIR = FORMAT == 0 ? 0x6c006c00u : 0x74007400u;  // the same, twice, in fp16

struct Raw {  // what one lane holds of a unit: 64 weights
  u32 word[SIX ? 3 : 2][4];
};

__device__ __forceinline__ void load_raw(Raw& raw, const u8* unit, int lane) {
  const uint4* plane = reinterpret_cast<const uint4*>(unit) + lane;
#pragma unroll
  for (int i = 0; i < UNIT / 512; i++) *reinterpret_cast<uint4*>(raw.word[i]) = plane[32 * i];
}

// Bits of `one` where `mask` has them, of `other` elsewhere; and bits of `x` under `mask`, some flipped: an instruction each, of which nvcc
// makes two where both constants are known.
__device__ __forceinline__ u32 choose_bits(u32 mask, u32 one, u32 other) {
  u32 r;
  asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(r) : "r"(mask), "r"(one), "r"(other));
  return r;
}
__device__ __forceinline__ u32 mask_and_flip(u32 x, u32 mask, u32 flip) {
  u32 r;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(r) : "r"(x), "r"(mask), "r"(flip));
  return r;
}

// A pair of 16-bit values times another.
__device__ __forceinline__ u32 times_pair(u32 pair, u32 factor) {
  u32 r;
#if BF16
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(pair), "r"(factor));
#else
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(pair), "r"(factor));
#endif
  return r;
}
__device__ __forceinline__ u32 pair_of(float x) {
  Value v[2];
  from_float(v[0], x);
  v[1] = v[0];
  u32 r;
  memcpy(&r, v, 4);
  return r;
}

// A nibble in the low mantissa bits of 1024 (fp16) or 128 (bfloat16) is that number plus the nibble, exactly; further up in the
// mantissa, of 64. A signed code with its top bit flipped is the integer plus 8. What has to be subtracted is another constant where
// there are zero points: for row g and for row g + 8.
struct Minus {
  u32 near[2], far[2];
};
__device__ __forceinline__ Minus minus_of(u32 zero0, u32 zero1) {
  const u32 flip = FORMAT == 3 ? 8 : 0, offset[2] = {zero0 ^ flip, zero1 ^ flip};
  Minus m;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    m.near[i] = (BF16 ? 0xc300c300u : 0xe400e400u) + offset[i] * 0x00010001u;
    m.far[i] = 0xd400d400u + offset[i] * 0x00100010u;
  }
  return m;
}

// A pair of minifloats as they come out of their words, with other bits around: fp16 after one mask, where the sign is bit 15 and exponent and
// mantissa begin at bit 12 - EARLY. bfloat16 has them further down.
constexpr int EARLY = FORMAT == 1 ? 1 : 0, LATER = BF16 ? 3 : 0;
constexpr u32 SIGN = 0x80008000u;
constexpr u32 FIELD = (FORMAT == 2 ? 0x0e000e00u : 0x1f001f00u) >> (EARLY + LATER);
__device__ __forceinline__ u32 pair_from(u32 bits) {
#if BF16
  return times_pair((bits & SIGN) | ((bits >> LATER) & FIELD), FORMAT == 0 ? 0x7d807d80u : 0x7e807e80u);
#else
  return bits & (SIGN | FIELD);
#endif
}
// The pairs in a word of four weights: a byte each, except that two of E2M3 share a half word.
__device__ __forceinline__ void pairs_of(u32 four, u32& upper, u32& lower) {
#if FORMAT == 1
  upper = pair_from(four ^ (four << 1)), lower = pair_from(__byte_perm(four, 0, 0x2301));
#else
  upper = pair_from(four), lower = pair_from(four << 8);
#endif
}

// The A fragment of step `j` (16 of the 128 k): a[0] row g, a[1] row g + 8, a[2] and a[3] the same, 8 further in k.
__device__ __forceinline__ void decode(const Raw& raw, int j, u32* a, const Minus& minus) {
#if FORMAT < 2
  const u32 w0 = raw.word[0][j / 2], w1 = raw.word[1][j / 2], w2 = raw.word[2][j / 2];
  if (j % 2 == 0) {
    pairs_of(w0, a[0], a[1]);
    pairs_of(w1, a[2], a[3]);
  } else {  // the last four weights fill the two bits that each byte of the others leaves
    pairs_of(w2, a[0], a[1]);
    const u32 turned = FORMAT == 0 ? __funnelshift_l(w2, w2, 2) : w2 << 2;
    const u32 others = choose_bits(FORMAT == 0 ? 0x06060606u : 0x03030303u, w1 >> 4, turned);
    const u32 four = choose_bits(FORMAT == 0 ? 0x18181818u : 0x0c0c0c0cu, w0 >> 2, others);
    pairs_of(four, a[2], a[3]);
  }
#else
  const u32 x = raw.word[j / 4][j % 4];
#if FORMAT == 2
  pairs_of(x, a[0], a[1]);
  pairs_of(choose_bits(0x80808080u, x << 7, x >> 3), a[2], a[3]);
#else
  const u32 y = x >> 8;
#if BF16
  const u32 near = FORMAT == 3 ? 0x43084308u : 0x43004300u, one = 0x3f803f80u;
  const u32 n[4] = {y, x, y >> 4, x >> 4};
#pragma unroll
  for (int i = 0; i < 4; i++)
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(a[i]) : "r"(mask_and_flip(n[i], 0x000f000fu, near)), "r"(one), "r"(minus.near[i & 1]));
#else
  const u32 near = FORMAT == 3 ? 0x64086408u : 0x64006400u, far = FORMAT == 3 ? 0x64806480u : 0x64006400u;
  const u32 n[2] = {y, x};
#pragma unroll
  for (int i = 0; i < 2; i++) {
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(a[i]) : "r"(mask_and_flip(n[i], 0x000f000fu, near)), "r"(minus.near[i]));
    asm("fma.rn.f16x2 %0, %1, %2, %3;"
        : "=r"(a[i + 2]) : "r"(mask_and_flip(n[i], 0x00f000f0u, far)), "r"(0x2c002c00u), "r"(minus.far[i]));
  }
#endif
#endif
#endif
}

__device__ __forceinline__ u32 smem(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void barrier_init(u64* bar, u32 count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(smem(bar)), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_expect(u64* bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(smem(bar)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u64* bar) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(smem(bar)) : "memory");
}
__device__ __forceinline__ void barrier_wait(u64* bar, u32 parity) {
  asm volatile(
      "{\n.reg .pred p;\nwait_%=:\nmbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n@p bra done_%=;\nbra wait_%=;\n"
      "done_%=:\n}" ::"r"(smem(bar)), "r"(parity) : "memory");
}
__device__ __forceinline__ void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ u64 stream_once() {  // weights: each byte is used once, so it may leave the cache first
  u64 policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
// Tensor maps: cuTensorMapEncodeTiled makes them, docs/gpu_kernels.md says of what. What lies outside a tensor arrives as zeros.
struct __align__(64) TensorMap {
  u64 opaque[16];
};
// The first use of a map waits for the map itself to be read: ask for it early.
__device__ __forceinline__ void prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
__device__ __forceinline__ void copy_box(void* to, const TensorMap* map, int c0, int c1, u64* bar) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                   smem(to)), "l"(map), "r"(c0), "r"(c1), "r"(smem(bar)) : "memory");
}
__device__ __forceinline__ void copy_box(void* to, const TensorMap* map, int c0, int c1, int c2, u64* bar) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
          smem(to)), "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(smem(bar)) : "memory");
}
__device__ __forceinline__ void copy_box(void* to, const TensorMap* map, int c0, int c1, int c2, u64* bar, u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(smem(to)), "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(smem(bar)), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void bulk_copy(void* to, const void* from, u32 bytes, u64* bar, u64 policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
          smem(to)), "l"(from), "r"(bytes), "r"(smem(bar)), "l"(policy) : "memory");
}

// Programmatic dependent launch: the next kernel may start, since its weights never depend on this one. To be called when this kernel
// has nothing left to wait for: were it called before, kernels after the next would start as well, and wait in the room that the
// next one needs (4096 x 4096, M = 1: 5.5 us instead of 4.3) ...
__device__ __forceinline__ void allow_next_kernel() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
// ... and nothing that the kernels before this one write or read may be touched before this returns.
__device__ __forceinline__ void wait_for_previous_kernels() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
// Of the blocks that share K.
__device__ __forceinline__ void cluster_sync() {
  if constexpr (SPLIT > 1) cluster_barrier();
  else __syncthreads();
}
__device__ __forceinline__ float4 load_from_rank(const float* local, int rank) {
  u32 address;
  float4 v;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(smem(local)), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address));
  return v;
}

// What a row's sum is multiplied by, and what is added: [2][Rows] in shared memory. Read before the products, in whose shadow the
// latency of global memory does not count; from L2 (__ldcg), as copies do: before the kernels before are done, L1 may have what
// stood there in the time of another.
template <int Rows, int Threads, bool Folded = false>
__device__ __forceinline__ void load_factors(float* factors, const Scale* scale, const Value* bias, int rows) {
  for (int i = threadIdx.x; i < rows; i += Threads) {
    factors[i] = Folded ? 1.f : GROUP ? FACTOR : FACTOR * to_float(__ldcg(scale + i));
    factors[Rows + i] = bias == nullptr ? 0.f : to_float(__ldcg(bias + i));
  }
}

template <int Bytes> struct FourOf { using Type = uint2; };
template <> struct FourOf<4> { using Type = uint4; };

__device__ __forceinline__ float gated(float gate, float up) { return gate / (1.f + __expf(-gate)) * up; }

// Columns of W that make one column of y.
constexpr int WAYS = GATED ? 2 : 1;

// Sum what the Parts groups of warps of each of the SPLIT blocks of a cluster left in `sums` [Parts][Columns][Rows + 4], in a
// fixed order, and write the results of Rows x columns sums to y[M, N / WAYS], from its row m0 and the column of strip0 on. Every
// thread of every block of the cluster calls it.
template <int Rows, int Parts, int Columns>
__device__ __forceinline__ void reduce_and_store(const float* sums, const float* factors, int rank, Result* y, int m0, int strip0,
                                                 int columns, int rows, int N) {
  constexpr int PITCH = Rows + 4, FOURS = Rows / 4 / WAYS;
  static_assert(Rows % (16 * WAYS) == 0, "a block has the gates of all that it has");
  cluster_sync();
  auto result = [&](int row, int column) {
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int r = 0; r < SPLIT; r++) {
#pragma unroll
      for (int p = 0; p < Parts; p++) {
        const float* from = sums + (p * Columns + column) * PITCH + row;
        float4 v;
        if constexpr (SPLIT > 1) v = load_from_rank(from, r);
        else v = *reinterpret_cast<const float4*>(from);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
    }
    const float4 times = *reinterpret_cast<const float4*>(factors + row), plus = *reinterpret_cast<const float4*>(factors + Rows + row);
    return make_float4(sum.x * times.x + plus.x, sum.y * times.y + plus.y, sum.z * times.z + plus.z, sum.w * times.w + plus.w);
  };
  for (int i = rank * blockDim.x + threadIdx.x; i < columns * FOURS; i += blockDim.x * SPLIT) {
    const int to = i % FOURS * 4, column = i / FOURS, row = GATED ? to / 16 * 32 + to % 16 : to;
    if (row >= rows) continue;
    float4 four = result(row, column);
#if GATED
    const float4 up = result(row + 16, column);
    four = make_float4(gated(four.x, up.x), gated(four.y, up.y), gated(four.z, up.z), gated(four.w, up.w));
#endif
    alignas(16) Result out[4];
    from_float(out[0], four.x);
    from_float(out[1], four.y);
    from_float(out[2], four.z);
    from_float(out[3], four.w);
    using Four = typename FourOf<sizeof(Result)>::Type;
    *reinterpret_cast<Four*>(y + static_cast<size_t>(m0 + column) * (N / WAYS) + strip0 * (16 / WAYS) + to) =
        *reinterpret_cast<Four*>(out);
  }
  if constexpr (SPLIT > 1) cluster_sync();  // no block may leave while another reads its sums
}
