// AVX2 with FMA and F16C (Haswell, Zen and later): sixteen codes at a time, each in a 16-bit lane.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "half.h"
#include "kernels.h"

namespace onnxq {
namespace {

struct Isa {
  static constexpr int kLanes = 8;
  static constexpr int kStep = 4 * kLanes;
  static constexpr int kGemvSteps = 2;
  static constexpr int kFewRows = 2;
  static constexpr int kTileRows = 6;
  static constexpr int kTileVecs = 2;
  using Vec = __m256;

  static Vec zero() { return _mm256_setzero_ps(); }
  static Vec set1(float x) { return _mm256_set1_ps(x); }
  static Vec load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Vec x) { _mm256_storeu_ps(to, x); }
  static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
  static Vec fmadd(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  ONNXQ_INLINE static void prefetch(const uint8_t* at) { _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1); }
  static Vec load_half(const uint16_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static void store_half(uint16_t* to, Vec x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
};

#include "kernels.inl"

// Loads the 16 bytes from `at` on, or where not Reach those that are left before `end`.
template <bool Reach>
__m256i load_bytes(const uint8_t* at, const uint8_t* end) {
  if (Reach || end - at >= 16) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  alignas(16) uint8_t last[16] = {};
  if (at < end) memcpy(last, at, static_cast<size_t>(end - at));
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(last)));
}

// How sixteen codes, within 2 * bits bytes (and one more), get into the upper bits of sixteen 16-bit lanes: the two
// bytes in which a code may lie, then a multiplication that shifts each lane to the left. Below a code in its lane
// stand bits of the ones before it.
struct Spread {
  uint8_t gather[8][32];  // by the bit at which the first code begins
  uint16_t factor[8][16];

  // `column_of(lane)` is the column whose code a lane shall hold.
  template <class ColumnOf>
  static constexpr Spread make(int bits, ColumnOf column_of) {
    Spread made{};
    for (int first = 0; first < 8; ++first) {
      for (int lane = 0; lane < 16; ++lane) {
        const int bit = column_of(lane) * bits + first;
        made.gather[first][2 * lane] = static_cast<uint8_t>(bit / 8);
        made.gather[first][2 * lane + 1] = static_cast<uint8_t>(bit / 8 + 1);
        made.factor[first][lane] = static_cast<uint16_t>(1 << (16 - bits - bit % 8));
      }
    }
    return made;
  }
};

constexpr int in_order(int lane) { return lane; }

// Lanes are widened within 128 bits: the lower four of each half have the first eight columns.
constexpr int to_unpack(int lane) { return lane % 8 / 4 * 8 + lane / 8 * 4 + lane % 4; }

alignas(32) constexpr Spread kInOrder[] = {Spread::make(5, in_order), Spread::make(6, in_order)};
alignas(32) constexpr Spread kToUnpack[] = {Spread::make(2, to_unpack), Spread::make(3, to_unpack),
                                            Spread::make(4, to_unpack), Spread::make(5, to_unpack),
                                            Spread::make(6, to_unpack)};

struct LaneRow {
  const uint8_t* bytes;
  __m256i gather, factor;
};

inline __m256i load_256(const void* from) { return _mm256_load_si256(static_cast<const __m256i*>(from)); }

// Sixteen bytes, for vpshufb to look up in either half.
inline __m256i twice(const uint8_t* bytes) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
}

// `Derived::values(lanes, out)` makes two vectors of sixteen lanes.
template <class Derived>
class LaneDecoder {
 public:
  using Row = LaneRow;
  static constexpr bool kReaches = true;

  LaneDecoder(const Spread& spread, const Format& format, const uint8_t* packed, uint64_t size)
      : spread_(spread), bits_(format.bits), end_(packed + size) {}

  Row row(const uint8_t* bytes, int bit) const {
    return {bytes, load_256(spread_.gather[bit]), load_256(spread_.factor[bit])};
  }

  template <bool Reach>
  void step(const Row& row, const uint8_t* at, Vec* out) const {
    for (int half = 0; half < 2; ++half) {
      static_cast<const Derived*>(this)->values(lanes<Reach>(row, at, half), out + 2 * half);
    }
  }

 protected:
  // Sixteen codes of the 32 from `at` on.
  template <bool Reach>
  __m256i lanes(const Row& row, const uint8_t* at, int half) const {
    const __m256i bytes = load_bytes<Reach>(at + half * 2 * bits_, end_);
    return _mm256_mullo_epi16(_mm256_shuffle_epi8(bytes, row.gather), row.factor);
  }

 private:
  const Spread& spread_;
  int64_t bits_;
  const uint8_t* end_;
};

// Five or six bits: exponent and mantissa of a minifloat, moved to their places in a float16, are its value times a
// power of two; conversion handles subnormal numbers as well. The power of two is multiplied in.
class MinifloatDecoder : public LaneDecoder<MinifloatDecoder> {
 public:
  MinifloatDecoder(const Format& format, const uint8_t* packed, uint64_t size)
      : LaneDecoder(kInOrder[format.bits - 5], format, packed, size),
        scale_(_mm256_set1_ps(format.scale)) {
    const int magnitude_bits = format.bits - 1, top = 15 - magnitude_bits;  // the lowest bit, right after the sign
    right_ = _mm_cvtsi32_si128(top - (10 - format.mantissa_bits));
    const int magnitude = ((1 << magnitude_bits) - 1) << (10 - format.mantissa_bits);
    mask_ = _mm256_set1_epi16(static_cast<int16_t>(0x8000 | magnitude));
  }

  void values(__m256i lanes, Vec* out) const {
    const __m256i halves = _mm256_and_si256(_mm256_sra_epi16(lanes, right_), mask_);  // the sign stays where it is
    out[0] = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), scale_);
    out[1] = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)), scale_);
  }

 private:
  __m256 scale_;
  __m128i right_;
  __m256i mask_;
};

// Four bits and values of no more than eight significant bits, that of code 0 being 0: two tables give the upper two
// bytes of each float32, and the lower two are zero.
class PairDecoder : public LaneDecoder<PairDecoder> {
 public:
  PairDecoder(const Format& format, const uint8_t* packed, uint64_t size)
      : LaneDecoder(kToUnpack[2], format, packed, size) {
    alignas(16) uint8_t low[16], high[16];
    for (int code = 0; code < 16; ++code) {
      const uint32_t bits = bits_of_float(format.values[code]);
      low[code] = static_cast<uint8_t>(bits >> 16);
      high[code] = static_cast<uint8_t>(bits >> 24);
    }
    low_ = twice(low);
    high_ = twice(high);
  }

  void values(__m256i lanes, Vec* out) const {
    const __m256i codes = _mm256_srli_epi16(lanes, 12);  // upper bytes are 0 and find a 0
    const __m256i low = _mm256_shuffle_epi8(low_, codes), high = _mm256_shuffle_epi8(high_, codes);
    const __m256i upper = _mm256_or_si256(low, _mm256_slli_epi16(high, 8)), none = _mm256_setzero_si256();
    out[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(none, upper));
    out[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(none, upper));
  }

 private:
  __m256i low_, high_;
};

template <bool Signed>
class IntegerDecoder : public LaneDecoder<IntegerDecoder<Signed>> {
 public:
  IntegerDecoder(const Format& format, const uint8_t* packed, uint64_t size)
      : LaneDecoder<IntegerDecoder>(kToUnpack[format.bits - 2], format, packed, size),
        right_(_mm_cvtsi32_si128(32 - format.bits)) {}

  void values(__m256i lanes, Vec* out) const {
    out[0] = value(_mm256_unpacklo_epi16(lanes, lanes));
    out[1] = value(_mm256_unpackhi_epi16(lanes, lanes));
  }

 private:
  Vec value(__m256i lanes) const {
    return _mm256_cvtepi32_ps(Signed ? _mm256_sra_epi32(lanes, right_) : _mm256_srl_epi32(lanes, right_));
  }

  __m128i right_;
};

// Four bits and any sixteen values. vpermps looks at the lowest three bits of a lane, and a blend at the highest.
class CodebookDecoder : public LaneDecoder<CodebookDecoder> {
 public:
  CodebookDecoder(const Format& format, const uint8_t* packed, uint64_t size)
      : LaneDecoder(kToUnpack[2], format, packed, size),
        lower_(_mm256_loadu_ps(format.values)),
        upper_(_mm256_loadu_ps(format.values + 8)) {}

  void values(__m256i lanes, Vec* out) const {
    out[0] = look_up(_mm256_unpacklo_epi16(lanes, lanes));
    out[1] = look_up(_mm256_unpackhi_epi16(lanes, lanes));
  }

 private:
  Vec look_up(__m256i lanes) const {
    const __m256i codes = _mm256_srli_epi32(lanes, 28);
    const __m256 lower = _mm256_permutevar8x32_ps(lower_, codes), upper = _mm256_permutevar8x32_ps(upper_, codes);
    return _mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(lanes));
  }

  __m256 lower_, upper_;
};

#include "avx2_int8.inl"

// Calls `with(decoder type)` for the decoder of a format.
template <class Decoder>
struct Use {
  using type = Decoder;
};

template <class With>
void choose(const Format& format, With with) {
  if (format.bits > 6) return with(Use<TableDecoder>{});
  switch (format.kind) {
    case FormatKind::kMinifloat:
      if (format.bits == 4) return with(Use<PairDecoder>{});
      return with(Use<MinifloatDecoder>{});
    case FormatKind::kSigned:
      return with(Use<IntegerDecoder<true>>{});
    case FormatKind::kUnsigned:
      return with(Use<IntegerDecoder<false>>{});
    case FormatKind::kTable:
      return with(Use<CodebookDecoder>{});
  }
}

template <class Dot>
void matmul(const MatMul& job, int64_t task) {
  if (job.rounded.values) return rounded_matmul<Dot>(job, task);
  choose(*job.weight.format, [&](auto use) { matmul_with<typename decltype(use)::type>(job, task); });
}

void dequantize(const Dequantize& job, int64_t task) {
  choose(*job.format, [&](auto use) { dequantize_with<typename decltype(use)::type>(job, task); });
}

}  // namespace

const Kernels kAvx2Kernels{"avx2", kStep, Isa::kFewRows, matmul<Dot>, finish, dequantize, round_row};
#if defined(ONNXQ_AVX_VNNI)
const Kernels kAvxVnniKernels{"avxvnni", kStep, Isa::kFewRows, matmul<VnniDot>, finish, dequantize, round_row};
#endif

}  // namespace onnxq
