// AVX-512 with VBMI and VNNI (Ice Lake, Zen 4 and later): bytes are gathered, split into codes and looked up 64 at a time.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "half.h"
#include "kernels.h"

namespace onnxq {
namespace {

#include "avx512_vec.inl"
#include "kernels.inl"

// Loads the 64 bytes from `at` on, or where not Reach those that are left before `end`.
template <bool Reach>
__m512i load_bytes(const uint8_t* at, const uint8_t* end) {
  if (Reach || end - at >= 64) return _mm512_loadu_si512(at);
  return _mm512_maskz_loadu_epi8(at < end ? ~0ull >> (64 - (end - at)) : 0, at);
}

// How 64 codes get from 8 * bits bytes (and one more, where the first code begins within a byte) into 64 bytes: vpermb
// brings the bytes of eight codes into each 64-bit word, and vpmultishiftqb takes eight bits from each code's first bit
// on; what is above a code in its byte belongs to the next one.
//
// Vector v of the result shall hold columns 16 v ... 16 v + 15 in its lanes, so the eight codes of a word come from
// `Windows` places, 16 columns apart, each of which gets 8 / Windows bytes of the word.
template <int Windows>
struct Spread {
  uint8_t gather[8][64];  // by the bit at which the first code begins
  uint8_t shift[8][64];

  // `column_of(byte)` is the column whose code `byte` of the result shall hold.
  template <class ColumnOf>
  static constexpr Spread make(int bits, ColumnOf column_of) {
    constexpr int width = 8 / Windows;
    Spread made{};
    for (int first = 0; first < 8; ++first) {
      for (int word = 0; word < 64; word += 8) {
        int lowest[Windows]{};
        for (int byte = 7; byte >= 0; --byte) {
          const int column = column_of(word + byte), window = column / 16 % Windows;
          lowest[window] = column;  // columns of a window ascend with the bytes
        }
        for (int window = 0; window < Windows; ++window) {
          const int bit = lowest[window] * bits + first;
          for (int i = 0; i < width; ++i) {
            made.gather[first][word + window * width + i] = static_cast<uint8_t>(bit / 8 + i);
          }
        }
        for (int byte = 0; byte < 8; ++byte) {
          const int column = column_of(word + byte), window = column / 16 % Windows;
          const int start = (lowest[window] * bits + first) / 8 * 8;
          made.shift[first][word + byte] =
              static_cast<uint8_t>(window * width * 8 + column * bits + first - start);
        }
      }
    }
    return made;
  }
};

// Bytes are widened within 128 bits, first to 16 and then to 32: vector v has the four from 4 v on.
constexpr int column_of_pair(int byte) { return byte % 16 / 4 * 16 + byte / 16 * 4 + byte % 4; }

// Vector v looks at byte v of each 32-bit word.
constexpr int column_of_quad(int byte) { return byte % 4 * 16 + byte / 4; }

alignas(64) constexpr Spread<2> kPairs[] = {
    Spread<2>::make(2, column_of_pair), Spread<2>::make(3, column_of_pair), Spread<2>::make(4, column_of_pair),
    Spread<2>::make(5, column_of_pair), Spread<2>::make(6, column_of_pair)};
alignas(64) constexpr Spread<4> kQuad = Spread<4>::make(4, column_of_quad);

struct StreamRow {
  const uint8_t* bytes;
  __m512i gather, shift;
};

template <int Windows>
class StreamDecoder {
 public:
  using Row = StreamRow;
  static constexpr bool kReaches = true;

  StreamDecoder(const Spread<Windows>& spread, const uint8_t* packed, uint64_t size)
      : spread_(spread), end_(packed + size) {}

  Row row(const uint8_t* bytes, int bit) const {
    return {bytes, _mm512_load_si512(spread_.gather[bit]), _mm512_load_si512(spread_.shift[bit])};
  }

 protected:
  template <bool Reach>
  __m512i codes(const Row& row, const uint8_t* at) const {
    const __m512i bytes = load_bytes<Reach>(at, end_);
    return _mm512_multishift_epi64_epi8(row.shift, _mm512_permutexvar_epi8(row.gather, bytes));
  }

 private:
  const Spread<Windows>& spread_;
  const uint8_t* end_;
};

// Up to six bits whose values have no more than eight significant bits: two tables give the upper two bytes of each
// float32, and the lower two are zero.
class PairDecoder : public StreamDecoder<2> {
 public:
  PairDecoder(const Format& format, const uint8_t* packed, uint64_t size)
      : StreamDecoder(kPairs[format.bits - 2], packed, size) {
    alignas(64) uint8_t low[64], high[64];
    for (int code = 0; code < 64; ++code) {
      const uint32_t bits = bits_of_float(format.values[code & ((1 << format.bits) - 1)]);
      low[code] = static_cast<uint8_t>(bits >> 16);
      high[code] = static_cast<uint8_t>(bits >> 24);
    }
    low_ = _mm512_load_si512(low);
    high_ = _mm512_load_si512(high);
  }

  template <bool Reach>
  void step(const Row& row, const uint8_t* at, Vec* out) const {
    const __m512i each = codes<Reach>(row, at);
    const __m512i low = _mm512_permutexvar_epi8(each, low_), high = _mm512_permutexvar_epi8(each, high_);
    const __m512i front = _mm512_unpacklo_epi8(low, high), back = _mm512_unpackhi_epi8(low, high);
    const __m512i none = _mm512_setzero_si512();
    out[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(none, front));
    out[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(none, front));
    out[2] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(none, back));
    out[3] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(none, back));
  }

 private:
  __m512i low_, high_;
};

// Four bits and any values: a table of float32. vpermps looks at the lowest four bits of a lane only.
class QuadDecoder : public StreamDecoder<4> {
 public:
  QuadDecoder(const Format& format, const uint8_t* packed, uint64_t size)
      : StreamDecoder(kQuad, packed, size) {
    table_ = _mm512_loadu_ps(format.values);
  }

  template <bool Reach>
  void step(const Row& row, const uint8_t* at, Vec* out) const {
    const __m512i each = codes<Reach>(row, at);
    out[0] = _mm512_permutexvar_ps(each, table_);
    out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(each, 8), table_);
    out[2] = _mm512_permutexvar_ps(_mm512_srli_epi32(each, 16), table_);
    out[3] = _mm512_permutexvar_ps(_mm512_srli_epi32(each, 24), table_);
  }

 private:
  __m512 table_;
};

#include "int8.inl"

struct Dot {
  using Ints = __m512i;
  static constexpr int kRows = 4;  // of activations that are multiplied at once

  static Ints set1(int32_t x) { return _mm512_set1_epi32(x); }
  static Vec to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
  // GCC 12 surrounds its own _mm512_dpbusd_epi32 with copies.
  ONNXQ_INLINE static Ints add(Ints sum, Ints weights, Ints activations) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(activations));
    return sum;
  }
};

class ByteDecoder : public PairDecoder {
 public:
  using RowCodes = __m512i;  // bytes already

  ByteDecoder(const Format& format, const uint8_t* packed, uint64_t size) : PairDecoder(format, packed, size) {
    alignas(64) uint8_t bytes[64];
    for (int code = 0; code < 64; ++code) bytes[code] = byte_of_code(format, code);
    bytes_ = _mm512_load_si512(bytes);
  }

  template <bool Reach>
  __m512i row_codes(const Row& row, const uint8_t* at) const {
    return _mm512_permutexvar_epi8(codes<Reach>(row, at), bytes_);
  }

  void interleave(const __m512i (&row)[4], __m512i* out) const {
    const __m512i front_low = _mm512_unpacklo_epi8(row[0], row[1]), front_high = _mm512_unpackhi_epi8(row[0], row[1]);
    const __m512i back_low = _mm512_unpacklo_epi8(row[2], row[3]), back_high = _mm512_unpackhi_epi8(row[2], row[3]);
    out[0] = _mm512_unpacklo_epi16(front_low, back_low);
    out[1] = _mm512_unpackhi_epi16(front_low, back_low);
    out[2] = _mm512_unpacklo_epi16(front_high, back_high);
    out[3] = _mm512_unpackhi_epi16(front_high, back_high);
  }

 private:
  __m512i bytes_;
};

void matmul(const MatMul& job, int64_t task) {
  const Format& format = *job.weight.format;
  if (job.rounded.values) return run_task<RoundedProduct<ByteDecoder, Dot>>(job, task);
  if (format.kind == FormatKind::kTable) return matmul_with<QuadDecoder>(job, task);
  if (format.bits <= 6) return matmul_with<PairDecoder>(job, task);
  matmul_with<TableDecoder>(job, task);
}

void dequantize(const Dequantize& job, int64_t task) {
  const Format& format = *job.format;
  if (format.kind == FormatKind::kTable) return dequantize_with<QuadDecoder>(job, task);
  if (format.bits <= 6) return dequantize_with<PairDecoder>(job, task);
  dequantize_with<TableDecoder>(job, task);
}

}  // namespace

const Kernels kVbmiKernels{"avx512vbmi", kStep, Isa::kFewRows, matmul, finish, dequantize, round_row};

}  // namespace onnxq
