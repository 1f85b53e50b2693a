// AVX-512 without VBMI (Skylake-SP, Cascade Lake): sixteen codes at a time, each in a 32-bit lane.
#include <immintrin.h>

#include <cstring>

#include "half.h"
#include "kernels.h"

namespace onnxq {
namespace {

#include "avx512_vec.inl"
#include "kernels.inl"

// Loads the 16 bytes from `at` on, or where not Reach those that are left before `end`.
template <bool Reach>
__m128i load_bytes(const uint8_t* at, const uint8_t* end) {
  if (Reach || end - at >= 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return _mm_maskz_loadu_epi8(static_cast<__mmask16>(at < end ? 0xffffu >> (16 - (end - at)) : 0), at);
}

// How sixteen codes, within 2 * bits bytes (and one more), get into sixteen lanes: the two bytes in which a code may
// lie, then a shift. The bytes are the same in all four 128-bit parts.
struct Spread {
  uint8_t gather[8][64];  // by the bit at which the first code begins
  uint32_t shift[8][16];

  static constexpr Spread make(int bits) {
    Spread made{};
    for (int first = 0; first < 8; ++first) {
      for (int lane = 0; lane < 16; ++lane) {
        const int bit = lane * bits + first;
        made.gather[first][4 * lane] = static_cast<uint8_t>(bit / 8);
        made.gather[first][4 * lane + 1] = static_cast<uint8_t>(bit / 8 + 1);
        made.gather[first][4 * lane + 2] = made.gather[first][4 * lane + 3] = 0x80;  // zero
        made.shift[first][lane] = static_cast<uint32_t>(bit % 8);
      }
    }
    return made;
  }
};

alignas(64) constexpr Spread kSpreads[] = {Spread::make(2), Spread::make(3), Spread::make(4), Spread::make(5),
                                           Spread::make(6)};

// Up to six bits: one, two or four tables of sixteen values; Bits is 4 for all that have no more.
template <int Bits>
class LaneDecoder {
 public:
  static constexpr bool kReaches = true;

  struct Row {
    const uint8_t* bytes;
    __m512i gather, shift;
  };

  LaneDecoder(const Format& format, const uint8_t* packed, uint64_t size)
      : spread_(kSpreads[format.bits - 2]), bits_(format.bits), end_(packed + size) {
    for (int t = 0; t < kTables; ++t) {
      alignas(64) float values[16];
      for (int code = 0; code < 16; ++code) {
        values[code] = format.values[(16 * t + code) & ((1 << format.bits) - 1)];
      }
      table_[t] = _mm512_load_ps(values);
    }
  }

  Row row(const uint8_t* bytes, int bit) const {
    return {bytes, _mm512_load_si512(spread_.gather[bit]), _mm512_load_si512(spread_.shift[bit])};
  }

  template <bool Reach>
  void step(const Row& row, const uint8_t* at, Vec* out) const {
    for (int v = 0; v < 4; ++v) {
      const __m512i bytes = _mm512_broadcast_i32x4(load_bytes<Reach>(at + v * 2 * bits_, end_));
      out[v] = value(_mm512_srlv_epi32(_mm512_shuffle_epi8(bytes, row.gather), row.shift));
    }
  }

 private:
  static constexpr int kTables = Bits == 4 ? 1 : Bits == 5 ? 2 : 4;

  // Permutations look at as many low bits of a lane as they have entries; those above belong to the next code.
  Vec value(__m512i code) const {
    if constexpr (Bits == 4) {
      return _mm512_permutexvar_ps(code, table_[0]);
    } else if constexpr (Bits == 5) {
      return _mm512_permutex2var_ps(table_[0], code, table_[1]);
    } else {
      const __m512 lower = _mm512_permutex2var_ps(table_[0], code, table_[1]);
      const __m512 upper = _mm512_permutex2var_ps(table_[2], code, table_[3]);
      return _mm512_mask_blend_ps(_mm512_test_epi32_mask(code, _mm512_set1_epi32(32)), lower, upper);
    }
  }

  const Spread& spread_;
  int64_t bits_;
  const uint8_t* end_;
  __m512 table_[kTables];
};

void matmul(const MatMul& job, int64_t task) {
  const int bits = job.weight.format->bits;
  if (bits <= 4) return matmul_with<LaneDecoder<4>>(job, task);
  if (bits == 5) return matmul_with<LaneDecoder<5>>(job, task);
  if (bits == 6) return matmul_with<LaneDecoder<6>>(job, task);
  matmul_with<TableDecoder>(job, task);
}

void dequantize(const Dequantize& job, int64_t task) {
  const int bits = job.format->bits;
  if (bits <= 4) return dequantize_with<LaneDecoder<4>>(job, task);
  if (bits == 5) return dequantize_with<LaneDecoder<5>>(job, task);
  if (bits == 6) return dequantize_with<LaneDecoder<6>>(job, task);
  dequantize_with<TableDecoder>(job, task);
}

}  // namespace

const Kernels kAvx512Kernels{"avx512", kStep, Isa::kFewRows, matmul, finish, dequantize, nullptr};

}  // namespace onnxq
