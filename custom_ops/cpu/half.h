// float16 and bfloat16 to float32 and back without special instructions.
#pragma once

#include <cstdint>
#include <cstring>

// Each instruction set compiles its own copy: a shared one could end up holding instructions that a CPU lacks.
namespace {

inline float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude < 0x400) {  // subnormal: that many units of 2^-24
    const float value = static_cast<float>(magnitude) * (1.0f / 16777216.0f);
    return sign ? -value : value;
  }
  return float_of_bits(sign | ((magnitude << 13) + ((127 - 15) << 23)));
}

inline uint16_t to_half(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds to 2^16 or more
  if (magnitude < 0x38800000) {  // below 2^-14: 0.5 has its last bit at 2^-24, so adding it rounds as a half does
    return sign | static_cast<uint16_t>(bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000);
  }
  return sign | static_cast<uint16_t>((magnitude - ((127 - 15) << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

inline float from_bfloat(uint16_t value) { return float_of_bits(static_cast<uint32_t>(value) << 16); }

inline uint16_t to_bfloat(float value) {
  const uint32_t bits = bits_of_float(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace
