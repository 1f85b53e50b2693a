// Products with int8 activations, for AVX2 and for AVX-VNNI; part of avx2.cc.

#include "int8.inl"

// Codes of up to 4, 5 or 6 bits become bytes by 1, 2 or 4 tables of sixteen.
template <int Tables>
class ByteDecoder : public LaneDecoder<ByteDecoder<Tables>> {
 public:
  struct RowCodes {
    __m256i half[2];
  };

  ByteDecoder(const Format& format, const uint8_t* packed, uint64_t size)
      : LaneDecoder<ByteDecoder>(kToUnpack[format.bits - 2], format, packed, size),
        to_low_(_mm_cvtsi32_si128(16 - format.bits)),
        to_high_(_mm_cvtsi32_si128(8 - format.bits)),
        high_(_mm256_set1_epi16(static_cast<int16_t>(((1 << format.bits) - 1) << 8))),
        unit_(format.int8_unit) {
    for (int t = 0; t < Tables; ++t) {
      alignas(16) uint8_t bytes[16];
      for (int i = 0; i < 16; ++i) {
        bytes[i] = byte_of_code(format, 16 * t + i);
        if (t) bytes[i] ^= byte_of_code(format, 16 * (t - 1) + i);
      }
      change_[t] = twice(bytes);
    }
  }

  template <bool Reach>
  RowCodes row_codes(const LaneRow& row, const uint8_t* at) const {
    return {{this->template lanes<Reach>(row, at, 0), this->template lanes<Reach>(row, at, 1)}};
  }

  void interleave(const RowCodes (&row)[4], __m256i* out) const {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i front = look_up(pair(row[0].half[half], row[1].half[half]));
      const __m256i back = look_up(pair(row[2].half[half], row[3].half[half]));
      out[2 * half] = _mm256_unpacklo_epi16(front, back);
      out[2 * half + 1] = _mm256_unpackhi_epi16(front, back);
    }
  }

  // As float32, of zero points.
  void values(__m256i lanes, Vec* out) const {
    const __m256i bytes = _mm256_and_si256(look_up(_mm256_srl_epi16(lanes, to_low_)), _mm256_set1_epi16(0xff));
    const __m256i none = _mm256_setzero_si256();
    out[0] = value(_mm256_unpacklo_epi16(bytes, none));
    out[1] = value(_mm256_unpackhi_epi16(bytes, none));
  }

 private:
  // Two rows of codes, at the top of 16-bit lanes, as the two bytes of such lanes.
  __m256i pair(__m256i even, __m256i odd) const {
    return _mm256_or_si256(_mm256_srl_epi16(even, to_low_), _mm256_and_si256(_mm256_srl_epi16(odd, to_high_), high_));
  }

  // vpshufb looks at the lowest four bits of a byte, and gives 0 where it is negative: each table changes what those
  // before it made, from its first code on.
  __m256i look_up(__m256i codes) const {
    __m256i found = _mm256_shuffle_epi8(change_[0], codes);
#pragma GCC unroll 4
    for (int t = 1; t < Tables; ++t) {
      const __m256i from_here = _mm256_sub_epi8(codes, _mm256_set1_epi8(static_cast<char>(16 * t)));
      found = _mm256_xor_si256(found, _mm256_shuffle_epi8(change_[t], from_here));
    }
    return found;
  }

  Vec value(__m256i byte) const {
    const __m256i units = _mm256_sub_epi32(byte, _mm256_set1_epi32(kByteOffset));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(units), _mm256_set1_ps(unit_));
  }

  __m128i to_low_, to_high_;
  __m256i high_;
  __m256i change_[Tables];
  float unit_;
};

struct Dot {
  using Ints = __m256i;
  static constexpr int kRows = 2;  // of activations that are multiplied at once: their sums stay in registers

  static Ints set1(int32_t x) { return _mm256_set1_epi32(x); }
  static Vec to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
  // vpmaddubsw adds two products in 16 bits and cannot overflow them: bytes of weights are at most 2 * kByteOffset, and
  // activations at most 127 either way, so that it makes at most 2 * 128 * 127 = 32512.
  ONNXQ_INLINE static Ints add(Ints sum, Ints weights, Ints activations) {
    const Ints pairs = _mm256_maddubs_epi16(weights, activations);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

#if defined(ONNXQ_AVX_VNNI)
struct VnniDot : Dot {
  static constexpr int kRows = 3;

  ONNXQ_INLINE static Ints add(Ints sum, Ints weights, Ints activations) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(weights), "x"(activations));
    return sum;
  }
};
#endif

template <class Dot>
void rounded_matmul(const MatMul& job, int64_t task) {
  const int bits = job.weight.format->bits;
  if (bits <= 4) return run_task<RoundedProduct<ByteDecoder<1>, Dot>>(job, task);
  if (bits == 5) return run_task<RoundedProduct<ByteDecoder<2>, Dot>>(job, task);
  run_task<RoundedProduct<ByteDecoder<4>, Dot>>(job, task);
}
