// Plain C++: for CPUs without AVX2, and the reference for the others.
#include <cstring>

#include "half.h"
#include "kernels.h"

namespace onnxq {
namespace {

struct Isa {
  static constexpr int kLanes = 4;
  static constexpr int kStep = 4 * kLanes;
  static constexpr int kGemvSteps = 1;
  static constexpr int kFewRows = 1;
  static constexpr int kTileRows = 2;
  static constexpr int kTileVecs = 4;

  struct Vec {
    float lane[kLanes];
  };

  template <class Function>
  static Vec each(Function function) {
    Vec made;
    for (int i = 0; i < kLanes; ++i) made.lane[i] = function(i);
    return made;
  }
  static Vec zero() { return {}; }
  static Vec set1(float x) {
    return each([&](int) { return x; });
  }
  static Vec load(const float* from) {
    return each([&](int i) { return from[i]; });
  }
  static void store(float* to, const Vec& x) { memcpy(to, x.lane, sizeof x.lane); }
  static Vec mul(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static Vec sub(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static Vec fmadd(const Vec& a, const Vec& b, const Vec& c) {
    return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static void prefetch(const uint8_t*) {}
  static Vec load_half(const uint16_t* from) {
    return each([&](int i) { return from_half(from[i]); });
  }
  static void store_half(uint16_t* to, const Vec& x) {
    for (int i = 0; i < kLanes; ++i) to[i] = to_half(x.lane[i]);
  }
};

#include "kernels.inl"

}  // namespace

const Kernels kPlainKernels{
    "plain", kStep, Isa::kFewRows, matmul_with<TableDecoder>, finish, dequantize_with<TableDecoder>, nullptr};

}  // namespace onnxq
