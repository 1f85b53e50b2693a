// Number formats: what each code means, and how a stream of codes lies in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace onnxq {

enum class FormatKind : uint8_t { kMinifloat, kSigned, kUnsigned, kTable };

struct Format {
  const char* name;  // as operators name it: FP6E2M3
  FormatKind kind;
  int bits;
  int mantissa_bits;  // of a minifloat
  float scale;        // a minifloat is (its bits moved to the exponent and mantissa of a float16) * scale
  float values[256];  // of codes 0 ... 2^bits - 1
  float int8_unit = 0;  // all values are multiples of it, by at most 64, and so fit bytes; 0 where there is none

  constexpr bool is_integer() const { return kind == FormatKind::kSigned || kind == FormatKind::kUnsigned; }
};

// Bytes of `count` codes, side by side without gaps, least significant bit first.
inline uint64_t packed_bytes(uint64_t count, int bits) { return (count * static_cast<uint64_t>(bits) + 7) / 8; }

// The smallest value, where the largest is at most 64 times as much; 0 too where codes have more bits than instructions
// take apart.
constexpr float find_int8_unit(const float* values, int bits) {
  if (bits > 6) return 0;
  float unit = 64, largest = 0;
  for (int code = 0; code < 1 << bits; ++code) {
    if (values[code] > 0 && values[code] < unit) unit = values[code];
    if (values[code] > largest) largest = values[code];
  }
  return largest <= 64 * unit ? unit : 0;
}

constexpr float power_of_two(int exponent) {
  float result = 1;
  for (; exponent > 0; --exponent) result *= 2;
  for (; exponent < 0; ++exponent) result /= 2;
  return result;
}

// Sign, exponent, mantissa; subnormals; bias 2^(e-1) - 1; the last `specials` magnitudes are NaN (or Inf) and have no
// value here.
constexpr Format minifloat(const char* name, int exponent_bits, int mantissa_bits, int specials = 0) {
  const int bits = 1 + exponent_bits + mantissa_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  Format made{name, FormatKind::kMinifloat, bits, mantissa_bits, power_of_two(15 - bias), {}};
  const int half = 1 << (bits - 1);
  for (int code = 0; code < half; ++code) {
    const int exponent = code >> mantissa_bits;
    const int mantissa = code & ((1 << mantissa_bits) - 1);
    const int significand = mantissa + (exponent > 0 ? 1 << mantissa_bits : 0);
    float value = static_cast<float>(significand) * power_of_two((exponent > 0 ? exponent : 1) - bias - mantissa_bits);
    if (code >= half - specials) value = std::numeric_limits<float>::quiet_NaN();
    made.values[code] = value;
    made.values[code + half] = -value;
  }
  made.int8_unit = find_int8_unit(made.values, bits);
  return made;
}

constexpr Format integer(const char* name, int bits, bool is_signed) {
  Format made{name, is_signed ? FormatKind::kSigned : FormatKind::kUnsigned, bits, 0, 1, {}};
  const int count = 1 << bits;
  for (int code = 0; code < count; ++code) {
    made.values[code] = static_cast<float>(is_signed && code >= count / 2 ? code - count : code);
  }
  made.int8_unit = find_int8_unit(made.values, bits);
  return made;
}

// NormalFloat4 (QLoRA, arXiv 2305.14314, appendix E).
constexpr Format normal_float4() {
  constexpr float levels[16] = {-1.0f,
                                -0.6961928009986877f,
                                -0.5250730514526367f,
                                -0.39491748809814453f,
                                -0.28444138169288635f,
                                -0.18477343022823334f,
                                -0.09105003625154495f,
                                0.0f,
                                0.07958029955625534f,
                                0.16093020141124725f,
                                0.24611230194568634f,
                                0.33791524171829224f,
                                0.44070982933044434f,
                                0.5626170039176941f,
                                0.7229568362236023f,
                                1.0f};
  Format made{"NF4", FormatKind::kTable, 4, 0, 1, {}};
  for (int code = 0; code < 16; ++code) made.values[code] = levels[code];
  return made;
}

// All formats with native operators.
inline constexpr Format kFormats[] = {
    minifloat("FP6E2M3", 2, 3),
    minifloat("FP6E3M2", 3, 2),
    minifloat("FP4E2M1", 2, 1),
    integer("INT4", 4, true),
    integer("UINT4", 4, false),
    normal_float4(),
    minifloat("FP5E2M2", 2, 2),
    minifloat("FP4E3M0", 3, 0),
    minifloat("FP4E1M2", 1, 2),
    integer("INT6", 6, true),
    integer("INT5", 5, true),
    integer("INT3", 3, true),
    integer("INT2", 2, true),
    integer("UINT2", 2, false),
    minifloat("FP8E4M3", 4, 3, 1),
    minifloat("FP8E5M2", 5, 2, 4),
    integer("INT8", 8, true),
    integer("UINT8", 8, false),
};
inline constexpr size_t kFormatCount = sizeof(kFormats) / sizeof(kFormats[0]);
inline constexpr size_t kTiledFormatCount = 5;  // the first, which GPU kernels decode

}  // namespace onnxq
