// Products with activations that are rounded to int8; included by vbmi.cc.
//
// Each value of the weight is an integer times the unit of its format. vpdpbusd multiplies four rows of the weight, as
// unsigned bytes (the integer plus kByteOffset), with four activations and adds all four products to a 32-bit lane. What
// the offset adds is taken off again: it is the same for all columns.

constexpr int kByteOffset = 64;

// Adds the products of four unsigned bytes of `a` with four signed bytes of `b` to each lane. GCC 12 surrounds its own
// _mm512_dpbusd_epi32 with copies.
ONNXQ_INLINE __m512i add_dot(__m512i sum, __m512i a, __m512i b) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}

class ByteDecoder : public PairDecoder {
 public:
  ByteDecoder(const Format& format, const uint8_t* packed, uint64_t size) : PairDecoder(format, packed, size) {
    alignas(64) uint8_t bytes[64];
    const float unit = int8_unit(format);
    for (int code = 0; code < 64; ++code) {
      const float value = format.values[code & ((1 << format.bits) - 1)];
      bytes[code] = static_cast<uint8_t>(static_cast<int>(value / unit) + kByteOffset);
    }
    bytes_ = _mm512_load_si512(bytes);
  }

  template <bool Reach>
  __m512i bytes(const Row& row, const uint8_t* at) const {
    return _mm512_permutexvar_epi8(codes<Reach>(row, at), bytes_);
  }

 private:
  __m512i bytes_;
};

struct RoundedProduct : Product<ByteDecoder> {
  static constexpr int kRows = 4;  // of activations that are multiplied at once

  const float unit = int8_unit(*weight.format);

  // A step of columns of `count` rows: byte b of lane l of vector 4 q + v is row 4 q + b of column 16 v + l. A row past the
  // last is another one: its activations are zero.
  template <bool Reach>
  ONNXQ_NOINLINE void decode_quads(int64_t k, int64_t count, int64_t at, Ahead* ahead, __m512i* out) const {
    const int64_t each = step_bytes<1>(), offset = at / 8 * weight.format->bits;
    Ahead next = *ahead;
    Rows codes(*this, k);
    for (int64_t i = 0; i < count; i += 4) {
      __m512i row[4];
      next.next(4 * each);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        row[r] = decoder.bytes<Reach>(codes.now(), codes.now().bytes + offset);
        if (i + r + 1 < count) codes.next();
      }
      const __m512i front_low = _mm512_unpacklo_epi8(row[0], row[1]), front_high = _mm512_unpackhi_epi8(row[0], row[1]);
      const __m512i back_low = _mm512_unpacklo_epi8(row[2], row[3]), back_high = _mm512_unpackhi_epi8(row[2], row[3]);
      _mm512_store_si512(out + i, _mm512_unpacklo_epi16(front_low, back_low));
      _mm512_store_si512(out + i + 1, _mm512_unpackhi_epi16(front_low, back_low));
      _mm512_store_si512(out + i + 2, _mm512_unpacklo_epi16(front_high, back_high));
      _mm512_store_si512(out + i + 3, _mm512_unpackhi_epi16(front_high, back_high));
    }
    *ahead = next;
  }

  // Adds the products of R rows of activations from `top` on with a run of decoded weights to `total`, `width` apart.
  template <int R>
  ONNXQ_NOINLINE void add_products(int64_t top, int64_t run, int64_t count, const __m512i* weights, const Group& group,
                                   float* total, int64_t width) const {
    const int64_t runs = Rounded::runs(weight.K), first = (row + top) * runs + run;
    const int8_t* x = job.rounded.values + first * kRoundedRun;
    __m512i sum[R][4];
#pragma GCC unroll 8
    for (int m = 0; m < R; ++m) {
      const __m512i start = _mm512_set1_epi32(-kByteOffset * job.rounded.sum[first + m * runs]);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sum[m][v] = start;
    }
    for (int64_t i = 0; i < count; i += 4) {
      __m512i factor[R];
      for (int m = 0; m < R; ++m) {
        int32_t four;
        memcpy(&four, x + m * runs * kRoundedRun + i, sizeof four);
        factor[m] = _mm512_set1_epi32(four);
      }
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m512i values = _mm512_load_si512(weights + i + v);
#pragma GCC unroll 8
        for (int m = 0; m < R; ++m) sum[m][v] = add_dot(sum[m][v], values, factor[m]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < R; ++m) {
      const Vec x_scale = Isa::set1(job.rounded.scale[first + m * runs] * unit);
      const Vec x_sum = Isa::set1(static_cast<float>(job.rounded.sum[first + m * runs]));
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        Vec value = _mm512_cvtepi32_ps(sum[m][v]);
        // Zero points are those of integers, whose unit is 1.
        if (weight.zero_point) value = _mm512_fnmadd_ps(Isa::load(group.zero + v * kLanes), x_sum, value);
        float* place = total + m * width + v * kLanes;
        const Vec scaled = Isa::mul(value, Isa::load(group.scale + v * kLanes));
        Isa::store(place, Isa::fmadd(scaled, x_scale, Isa::load(place)));
      }
    }
  }

  template <int R>
  void add_rows(int64_t height, int64_t top, int64_t run, int64_t count, const __m512i* weights, const Group& group,
                float* total, int64_t width) const {
    if constexpr (R > 1) {
      if (height < R) return add_rows<R - 1>(height, top, run, count, weights, group, total, width);
    }
    add_products<R>(top, run, count, weights, group, total, width);
  }

  // Sums over rows `first` to `last` of the weight: `rows` of them, `width` apart.
  void sum_rows(int64_t first, int64_t last, float* total, int64_t width) const {
    const int64_t padded = columns_padded(), tiles = (rows + kRows - 1) / kRows;
    alignas(64) __m512i weights[kRoundedRun];
    ask_for_run(first, last);
    for (int64_t k = first; k < last; k += kRoundedRun) {
      const int64_t count = smaller(kRoundedRun, last - k), g = k / weight.block;
      const bool reach = what_to_mind(k + count - 1, padded - kStep) != Mind::kZeroPointsAndEnd;
      Ahead coming = ahead(k + kRoundedRun, last);
      for (int64_t at = 0; at < padded; at += kStep) {
        if (reach) {
          decode_quads<true>(k, count, at, &coming, weights);
        } else {
          decode_quads<false>(k, count, at, &coming, weights);
        }
        Group group;
        group.read(weight, zero_decoder, g, column + at, smaller(kStep, columns - at));
        ask_for_scales(g + 1, at, kStep);
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t top = rows * t / tiles, below = rows * (t + 1) / tiles;
          add_rows<kRows>(below - top, top, k / kRoundedRun, count, weights, group, total + top * width + at,
                                   width);
        }
      }
    }
  }

  void run(int64_t part) const {
    alignas(64) float total[kMaxResults + 16 * kMaxRows];
    const int64_t width = columns_padded() + 16;  // no power of two, as in many_rows
    memset(total, 0, static_cast<size_t>(rows * width) * sizeof(float));
    const int64_t first = part * job.part_rows;
    sum_rows(first, job.parts ? smaller(first + job.part_rows, weight.K) : weight.K, total, width);
    if (job.parts) return write_part(part, total, width);
    write_results(total, width);
  }
};

// Every kRoundedRun activations of a row share a scale, the largest magnitude / 127. Where one of them is no finite
// number, so are all results of the row.
void round_row(const MatMul& job, int64_t m) {
  const int64_t K = job.weight.K, runs = Rounded::runs(K);
  constexpr float kSmallest = 1e-30f;  // 127 / smaller numbers could overflow
  for (int64_t run = 0; run < runs; ++run) {
    alignas(64) float x[kRoundedRun] = {};
    to_floats(job.x, m * K + run * kRoundedRun, smaller(kRoundedRun, K - run * kRoundedRun), job.type, x);
    const __m512 low = _mm512_load_ps(x), high = _mm512_load_ps(x + 16);
    const __m512 magnitudes = _mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high));
    const __m512 zero = _mm512_setzero_ps();
    const __m512 none = _mm512_fmadd_ps(zero, low, _mm512_mul_ps(zero, high));  // NaN where one is not finite
    const float largest = _mm512_reduce_max_ps(magnitudes);
    const __m512 factor = _mm512_set1_ps(largest >= kSmallest ? 127 / largest : 0);
    const __mmask16 finite = _mm512_cmp_ps_mask(none, none, _CMP_ORD_Q);
    const __m512i front = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(finite, low, factor));
    const __m512i back = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(finite, high, factor));
    const int64_t at = m * runs + run;
    __m128i* to = reinterpret_cast<__m128i*>(job.rounded.values + at * kRoundedRun);
    _mm_storeu_si128(to, _mm512_cvtsepi32_epi8(front));
    _mm_storeu_si128(to + 1, _mm512_cvtsepi32_epi8(back));
    job.rounded.scale[at] = largest / 127 + _mm512_reduce_add_ps(none);
    job.rounded.sum[at] = _mm512_reduce_add_epi32(_mm512_add_epi32(front, back));
  }
}
