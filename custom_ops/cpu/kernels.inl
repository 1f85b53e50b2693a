// The kernels, in terms of an instruction set `Isa` and its decoders; each instruction set includes this file once,
// inside an anonymous namespace, so that no function compiled for one CPU can stand in for that of another.
//
// A decoder turns `Isa::kStep` codes that lie side by side in a row into four vectors of float32, in order. A step begins
// at the byte of its first code; a row knows at which bit of it, which is the same for all its steps. Codes past
// the end of a row may come from the next: nobody looks at their results. `step<false>` never reads beyond the packed
// bytes; `step<true>` may read kReach bytes from its first on, so that its caller must know that they are there.

constexpr int64_t kReach = 64;

constexpr int64_t kRun = kRoundedRun;  // rows that pass through registers before their sum is scaled
constexpr int64_t kTileRun = 64;       // rows that are decoded into a buffer for many rows of activations
constexpr int kTileSteps = 2;          // steps of columns of that buffer
constexpr int64_t kWidest = kMaxColumns;  // elements that are dequantized at once

using Vec = Isa::Vec;
constexpr int kLanes = Isa::kLanes;
constexpr int kStep = Isa::kStep;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline void to_floats(const void* from, int64_t start, int64_t count, Float type, float* out) {
  if (type == Float::kFloat32) {
    memcpy(out, static_cast<const float*>(from) + start, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const uint16_t* in = static_cast<const uint16_t*>(from) + start;
  int64_t i = 0;
  if (type == Float::kFloat16) {
    for (; i + kLanes <= count; i += kLanes) Isa::store(out + i, Isa::load_half(in + i));
    for (; i < count; ++i) out[i] = from_half(in[i]);
  } else {
    for (; i < count; ++i) out[i] = from_bfloat(in[i]);
  }
}

inline void from_floats(const float* in, int64_t count, Float type, void* to, int64_t start) {
  if (type == Float::kFloat32) {
    memcpy(static_cast<float*>(to) + start, in, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(to) + start;
  int64_t i = 0;
  if (type == Float::kFloat16) {
    for (; i + kLanes <= count; i += kLanes) Isa::store_half(out + i, Isa::load(in + i));
    for (; i < count; ++i) out[i] = to_half(in[i]);
  } else {
    for (; i < count; ++i) out[i] = to_bfloat(in[i]);
  }
}

// Where the codes of a stream, or of a row of it, begin.
template <class Decoder>
typename Decoder::Row row_at_bit(const Decoder& decoder, const uint8_t* packed, uint64_t bit) {
  return decoder.row(packed + bit / 8, static_cast<int>(bit % 8));
}

template <class Decoder>
typename Decoder::Row row_at(const Decoder& decoder, const uint8_t* packed, uint64_t code, int bits) {
  return row_at_bit(decoder, packed, code * static_cast<uint64_t>(bits));
}

template <class Decoder>
void decode(const Decoder& decoder, const uint8_t* packed, uint64_t code, int bits, int64_t count, float* out) {
  const typename Decoder::Row row = row_at(decoder, packed, code, bits);
  Vec values[4];
  const uint8_t* at = row.bytes;
  for (int64_t i = 0; i < count; i += kStep, at += kStep / 8 * bits) {
    decoder.template step<false>(row, at, values);
    if (i + kStep <= count) {
      for (int v = 0; v < 4; ++v) Isa::store(out + i + v * kLanes, values[v]);
    } else {
      alignas(64) float last[kStep];
      for (int v = 0; v < 4; ++v) Isa::store(last + v * kLanes, values[v]);
      memcpy(out + i, last, static_cast<size_t>(count - i) * sizeof(float));
    }
  }
}

// Scales and zero points of one group, for a few steps of columns; beyond the last column they are anything finite.
struct Group {
  static constexpr int64_t kMaxSteps = 4;

  const float* scale;
  alignas(64) float scale_buffer[kMaxSteps * kStep];
  alignas(64) float zero[kMaxSteps * kStep];

  template <class Decoder>
  void read(const Weight& weight, const Decoder& zero_decoder, int64_t group, int64_t column, int64_t count) {
    const int64_t padded = (count + kStep - 1) / kStep * kStep;
    const int64_t first = weight.scale_per_column ? group * weight.N + column : group;
    const int64_t stored = weight.scale_per_column ? count : 1;
    if (weight.scale_type == Float::kFloat32 && stored == padded) {
      scale = static_cast<const float*>(weight.scale) + first;
    } else {
      to_floats(weight.scale, first, stored, weight.scale_type, scale_buffer);
      for (int64_t i = stored; i < padded; ++i) scale_buffer[i] = scale_buffer[0];
      scale = scale_buffer;
    }
    if (!weight.zero_point) return;
    const int bits = weight.format->bits;
    decode(zero_decoder, weight.zero_point, static_cast<uint64_t>(first), bits, stored, zero);
    for (int64_t i = stored; i < padded; ++i) zero[i] = zero[0];
  }
};

// Asks for weights some time before they are used, in the order in which they lie in memory: what a CPU itself fetches
// ahead follows such a stream, and that is twice as fast as asking for the same columns in the rows further down.
class Ahead {
 public:
  // The columns of `rows` rows, each `width` bytes of `stride`; none where `from` is null.
  Ahead(const uint8_t* from, int64_t width, int64_t stride)
      : at_(from), end_(from + (width < stride ? width : INT64_MAX / 2)), skip_(stride - width), stride_(stride) {}

  // As many bytes as the caller is about to use, at most 192.
  ONNXQ_INLINE void next(int64_t bytes) {
    if (!at_) return;
    Isa::prefetch(at_);
    if (bytes > 64) Isa::prefetch(at_ + 64);
    if (bytes > 128) Isa::prefetch(at_ + 128);
    at_ += bytes;
    if (at_ >= end_) {
      at_ = end_ + skip_;
      end_ += stride_;
    }
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
  int64_t skip_, stride_;
};

// Formats that no decoder of an instruction set takes: one code after another through the table.
class TableDecoder {
 public:
  static constexpr bool kReaches = false;  // `step` always minds the end

  struct Row {
    const uint8_t* bytes;
    int bit;
  };

  TableDecoder(const Format& format, const uint8_t* packed, uint64_t size)
      : format_(format), end_(packed + size) {}

  Row row(const uint8_t* bytes, int bit) const { return {bytes, bit}; }

  template <bool>
  void step(const Row& row, const uint8_t* from, Vec* out) const {
    alignas(64) float values[kStep];
    const uint32_t mask = (1u << format_.bits) - 1;
    for (int i = 0; i < kStep; ++i) {
      const int bit = row.bit + i * format_.bits;
      const uint8_t* at = from + bit / 8;
      const uint32_t low = at < end_ ? at[0] : 0, high = at + 1 < end_ ? at[1] : 0;
      values[i] = format_.values[(low | high << 8) >> (bit % 8) & mask];
    }
    for (int v = 0; v < 4; ++v) out[v] = Isa::load(values + v * kLanes);
  }

 private:
  const Format& format_;
  const uint8_t* end_;
};

#include "matmul.inl"
#include "dequantize.inl"
