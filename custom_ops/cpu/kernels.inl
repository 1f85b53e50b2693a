// The kernels, in terms of an instruction set `Isa` and its decoders; each instruction set includes this file once,
// inside an anonymous namespace, so that no function compiled for one CPU can stand in for that of another.
//
// A decoder turns `Isa::kStep` codes that lie side by side in a row into four vectors of float32, in order. A step begins
// at the byte of its first code; a row knows at which bit of it, which is the same for all its steps. Codes past
// the end of a row may come from the next: nobody looks at their results. `step<false>` never reads beyond the packed
// bytes; `step<true>` may read kReach bytes from its first on, so that its caller must know that they are there.

#if defined(_MSC_VER)
#define ONNXQ_NOINLINE __declspec(noinline)
#else
#define ONNXQ_NOINLINE __attribute__((noinline))  // loops of their own keep more in registers
#endif

constexpr int64_t kReach = 64;

constexpr int64_t kRun = 32;      // rows that pass through registers before their sum is scaled
constexpr int64_t kTileRun = 64;  // rows that are decoded into a buffer for many rows of activations
constexpr int kTileSteps = 2;     // steps of columns of that buffer
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

// Scales and zero points of one group, for the columns of a block; beyond its last column they are anything finite.
struct Group {
  const float* scale;
  alignas(64) float scale_buffer[kMaxColumns];
  alignas(64) float zero[kMaxColumns];

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
  void next(int64_t bytes) {
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

template <class Decoder>
struct Product {
  const MatMul& job;
  const Weight& weight = job.weight;
  const Decoder decoder{*weight.format, weight.packed,
                        packed_bytes(static_cast<uint64_t>(weight.K * weight.N), weight.format->bits)};
  const Decoder zero_decoder{*weight.format, weight.zero_point, zero_bytes(weight)};
  int64_t row = 0, rows = 0, column = 0, columns = 0;

  static uint64_t zero_bytes(const Weight& weight) {
    const int64_t groups = (weight.K + weight.block - 1) / weight.block;
    return packed_bytes(static_cast<uint64_t>(groups * (weight.scale_per_column ? weight.N : 1)), weight.format->bits);
  }

  // The first bit of this block's columns in row `k`.
  uint64_t weight_bit(int64_t k) const {
    return static_cast<uint64_t>(k * weight.N + column) * static_cast<uint64_t>(weight.format->bits);
  }

  uint64_t row_bits() const { return static_cast<uint64_t>(weight.N * weight.format->bits); }

  // Whether all steps up to that at column `last` may be taken without care in row `k` and those before it.
  bool safe(int64_t k, int64_t last) const {
    const uint64_t from = weight_bit(k) / 8 + static_cast<uint64_t>(last / 8 * weight.format->bits);
    return from + kReach <= packed_bytes(static_cast<uint64_t>(weight.K * weight.N), weight.format->bits);
  }

  // Rows of activations from `k` on as float32, in `buffer` where they must be converted: [R, stride].
  const float* activations(int64_t k, int64_t count, float* buffer, int64_t* stride) const {
    if (job.type == Float::kFloat32) {
      *stride = weight.K;
      return static_cast<const float*>(job.x) + row * weight.K + k;
    }
    for (int64_t m = 0; m < rows; ++m) {
      to_floats(job.x, (row + m) * weight.K + k, count, job.type, buffer + m * *stride);
    }
    return buffer;
  }

  // The codes of this block's columns, row after row. Where rows are whole bytes, all begin at the same bit.
  class Rows {
   public:
    Rows(const Product& product, int64_t k)
        : product_(product), bit_(product.weight_bit(k)), width_(product.row_bits()), now_(at(bit_)) {}

    const typename Decoder::Row& now() const { return now_; }

    void next() {
      bit_ += width_;
      if (width_ % 8 == 0) {
        now_.bytes += width_ / 8;
      } else {
        now_ = at(bit_);
      }
    }

   private:
    typename Decoder::Row at(uint64_t bit) const { return row_at_bit(product_.decoder, product_.weight.packed, bit); }

    const Product& product_;
    uint64_t bit_, width_;
    typename Decoder::Row now_;
  };

  // What a loop over rows of weights has to mind.
  enum class Mind { kNothing, kZeroPoints, kZeroPointsAndEnd };

  Mind what_to_mind(int64_t last_row, int64_t last_column) const {
    if (!Decoder::kReaches || !safe(last_row, last_column)) return Mind::kZeroPointsAndEnd;
    return weight.zero_point ? Mind::kZeroPoints : Mind::kNothing;
  }

  template <Mind M>
  void decode_step(const typename Decoder::Row& row, const uint8_t* from, int64_t at, const Group& group,
                   Vec* values) const {
    decoder.template step<M != Mind::kZeroPointsAndEnd>(row, from, values);
    // Before the product: a weight that equals its zero point is 0, and stays so.
    if (M != Mind::kNothing && (M == Mind::kZeroPoints || weight.zero_point)) subtract_zero(group, at, values);
  }

  // The columns of this block from row `k` on; nothing where that is the end of what this task reads.
  Ahead ahead(int64_t k, int64_t end) const {
    const int64_t bits = weight.format->bits;
    if (k >= end) return {nullptr, 0, 1};
    return {weight.packed + weight_bit(k) / 8, columns == weight.N ? weight.N * bits / 8 : (columns * bits + 7) / 8,
            weight.N * bits / 8};
  }

  // Bytes of S steps of columns.
  template <int S>
  int64_t step_bytes() const {
    return S * kStep / 8 * weight.format->bits;
  }

  // A few rows of activations: what is decoded goes straight into products, S steps of columns at a time.
  template <int R, int S, Mind M>
  ONNXQ_NOINLINE void multiply(int64_t k, int64_t count, int64_t at, const float* x, int64_t stride,
                               const Group& group, Ahead* ahead, float* total) const {
    Vec sum[R][4 * S];
    for (int m = 0; m < R; ++m) {
      for (int v = 0; v < 4 * S; ++v) sum[m][v] = Isa::zero();
    }
    const int64_t each = step_bytes<S>(), one = step_bytes<1>(), offset = at / 8 * weight.format->bits;
    Ahead next = *ahead;
    Rows codes(*this, k);
    for (int64_t i = 0; i < count; ++i, codes.next()) {
      const uint8_t* from = codes.now().bytes + offset;
      next.next(each);
      Vec factor[R];
      for (int m = 0; m < R; ++m) factor[m] = Isa::set1(x[m * stride + i]);
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        Vec values[4];
        decode_step<M>(codes.now(), from, at + s * kStep, group, values);
        from += one;
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
#pragma GCC unroll 4
          for (int m = 0; m < R; ++m) sum[m][4 * s + v] = Isa::fmadd(values[v], factor[m], sum[m][4 * s + v]);
        }
      }
    }
    *ahead = next;
    const int64_t padded = columns_padded();
    for (int m = 0; m < R; ++m) {
      for (int v = 0; v < 4 * S; ++v) {
        float* place = total + m * padded + at + v * kLanes;
        const Vec scale = Isa::load(group.scale + at + v * kLanes);
        Isa::store(place, Isa::fmadd(sum[m][v], scale, Isa::load(place)));
      }
    }
  }

  template <int R, int S>
  void multiply_minding(Mind mind, int64_t k, int64_t count, int64_t at, const float* x, int64_t stride,
                        const Group& group, Ahead* ahead, float* total) const {
    if constexpr (Decoder::kReaches) {
      if (mind == Mind::kNothing) return multiply<R, S, Mind::kNothing>(k, count, at, x, stride, group, ahead, total);
      if (mind == Mind::kZeroPoints) return multiply<R, S, Mind::kZeroPoints>(k, count, at, x, stride, group, ahead, total);
    }
    multiply<R, S, Mind::kZeroPointsAndEnd>(k, count, at, x, stride, group, ahead, total);
  }

  static void subtract_zero(const Group& group, int64_t at, Vec* values) {
    for (int v = 0; v < 4; ++v) values[v] = Isa::sub(values[v], Isa::load(group.zero + at + v * kLanes));
  }

  int64_t columns_padded() const { return (columns + kStep - 1) / kStep * kStep; }

  void ask_for_scales(int64_t group, int64_t at, int64_t count) const {
    if (!weight.scale_per_column) return;
    const size_t size = size_of(weight.scale_type);
    const uint8_t* from = static_cast<const uint8_t*>(weight.scale) +
                          static_cast<size_t>(group * weight.N + column + at) * size;
    for (size_t i = 0; i < static_cast<size_t>(count) * size; i += 64) Isa::prefetch(from + i);
  }

  // The sums of rows `first` to `last` of the weight.
  template <int R>
  void few_rows(int64_t part, int64_t first, int64_t last) const {
    Group group;
    alignas(64) float total[R * kMaxColumns];
    alignas(64) float buffer[R * kRun];
    const int64_t padded = columns_padded();
    memset(total, 0, static_cast<size_t>(R * padded) * sizeof(float));
    Ahead start = ahead(first, last);
    for (int64_t at = 0; at < kRun * columns / 8 * weight.format->bits; at += 64) start.next(64);
    int64_t read = -1;
    for (int64_t k = first, count; k < last; k += count) {
      const int64_t g = k / weight.block;
      count = smaller(smaller(kRun, last - k), (g + 1) * weight.block - k);
      if (g != read) group.read(weight, zero_decoder, read = g, column, columns);
      int64_t stride = kRun;
      const float* x = activations(k, count, buffer, &stride);
      const Mind mind = what_to_mind(k + count - 1, padded - kStep);
      Ahead coming = ahead(k + kRun, last);
      constexpr int S = R == 1 ? Isa::kGemvSteps : R == 2 ? (Isa::kGemvSteps + 1) / 2 : 1;
      int64_t at = 0;
      for (; at + S * kStep <= padded; at += S * kStep) {
        ask_for_scales(g + 1, at, S * kStep);
        multiply_minding<R, S>(mind, k, count, at, x, stride, group, &coming, total);
      }
      for (; at < padded; at += kStep) multiply_minding<R, 1>(mind, k, count, at, x, stride, group, &coming, total);
    }
    for (int m = 0; m < R; ++m) {
      float* to = job.sums + (part * job.M + m) * weight.N + column;
      memcpy(to, total + m * padded, static_cast<size_t>(columns) * sizeof(float));
    }
  }

  void write(int64_t m, const float* results) const {
    from_floats(results, columns, job.type, job.y, (row + m) * weight.N + column);
  }

  // A tile of R rows x V vectors of results, over `count` decoded rows of weights, `pitch` apart.
  template <int R, int V>
  ONNXQ_NOINLINE static void tile(const float* x, int64_t stride, const float* weights, int64_t pitch, int64_t count,
                                  float* total, int64_t width) {
    Vec sum[R][V];
    for (int m = 0; m < R; ++m) {
      for (int v = 0; v < V; ++v) sum[m][v] = Isa::load(total + m * width + v * kLanes);
    }
    for (int64_t i = 0; i < count; ++i) {
      Vec values[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) values[v] = Isa::load(weights + i * pitch + v * kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < R; ++m) {
        const Vec factor = Isa::set1(x[m * stride + i]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[m][v] = Isa::fmadd(values[v], factor, sum[m][v]);
      }
    }
    for (int m = 0; m < R; ++m) {
      for (int v = 0; v < V; ++v) Isa::store(total + m * width + v * kLanes, sum[m][v]);
    }
  }

  template <int S, int R>
  static void tiles(int64_t height, const float* x, int64_t stride, const float* weights, int64_t count, float* total,
                    int64_t width) {
    if constexpr (R > 1) {
      if (height < R) return tiles<S, R - 1>(height, x, stride, weights, count, total, width);
    }
    for (int v = 0; v < 4 * S; v += Isa::kTileVecs) {
      tile<R, Isa::kTileVecs>(x, stride, weights + v * kLanes, S * kStep, count, total + v * kLanes, width);
    }
  }

  // Decoded and scaled rows of S steps of columns, [count, S * kStep]. `group` has the scales of these columns.
  template <int S, Mind M>
  ONNXQ_NOINLINE void decode_scaled(int64_t k, int64_t count, int64_t at, const Group& group, Ahead* ahead,
                                    float* out) const {
    Vec scale[4 * S];
    for (int v = 0; v < 4 * S; ++v) scale[v] = Isa::load(group.scale + v * kLanes);
    const int64_t each = step_bytes<S>(), one = step_bytes<1>(), offset = at / 8 * weight.format->bits;
    Ahead next = *ahead;
    Rows codes(*this, k);
    for (int64_t i = 0; i < count; ++i, codes.next()) {
      const uint8_t* from = codes.now().bytes + offset;
      next.next(each);
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        Vec values[4];
        decode_step<M>(codes.now(), from, s * kStep, group, values);
        from += one;
        for (int v = 0; v < 4; ++v) {
          Isa::store(out + (i * 4 * S + 4 * s + v) * kLanes, Isa::mul(values[v], scale[4 * s + v]));
        }
      }
    }
    *ahead = next;
  }

  template <int S>
  void decode_minding(Mind mind, int64_t k, int64_t count, int64_t at, const Group& group, Ahead* ahead,
                      float* out) const {
    if constexpr (Decoder::kReaches) {
      if (mind == Mind::kNothing) return decode_scaled<S, Mind::kNothing>(k, count, at, group, ahead, out);
      if (mind == Mind::kZeroPoints) return decode_scaled<S, Mind::kZeroPoints>(k, count, at, group, ahead, out);
    }
    decode_scaled<S, Mind::kZeroPointsAndEnd>(k, count, at, group, ahead, out);
  }

  // The same over all groups that `count` rows reach into.
  template <int S>
  void decode_groups(Mind mind, int64_t k, int64_t count, int64_t at, Ahead* ahead, float* out) const {
    Group group;
    for (int64_t done = 0, part; done < count; done += part) {
      const int64_t g = (k + done) / weight.block;
      part = smaller(count - done, (g + 1) * weight.block - k - done);
      group.read(weight, zero_decoder, g, column + at, smaller(S * kStep, columns - at));
      decode_minding<S>(mind, k + done, part, at, group, ahead, out + done * S * kStep);
    }
  }

  // `count` rows of the weight in S steps of columns, times all rows of activations.
  template <int S>
  void multiply_tiles(Mind mind, int64_t k, int64_t count, int64_t at, const float* x, int64_t stride, Ahead* ahead,
                      float* total, int64_t width) const {
    alignas(64) float weights[kTileRun * kTileSteps * kStep];
    decode_groups<S>(mind, k, count, at, ahead, weights);
    // Rows are shared out evenly: 8 rows are two tiles of 4 rather than one of 6 and one of 2.
    const int64_t tile_count = (rows + Isa::kTileRows - 1) / Isa::kTileRows;
    for (int64_t t = 0; t < tile_count; ++t) {
      const int64_t top = rows * t / tile_count, below = rows * (t + 1) / tile_count;
      tiles<S, Isa::kTileRows>(below - top, x + top * stride, stride, weights, count, total + top * width + at, width);
    }
  }

  void many_rows() const {
    // Rows of sums and of activations lie neither side by side in memory nor a power of two apart: those of a tile would
    // displace each other in the first-level cache.
    constexpr int64_t kStride = kTileRun + 16;
    alignas(64) float total[kMaxResults + 16 * kMaxRows];
    alignas(64) float x[kMaxRows * kStride];
    const int64_t padded = columns_padded(), width = padded + 16;
    memset(total, 0, static_cast<size_t>(rows * width) * sizeof(float));
    // A short run leaves room for codes in the first-level cache; where there is much to compute, sums are to be loaded and
    // stored less often.
    const int64_t run = rows <= 32 ? kTileRun / 2 : kTileRun;
    for (int64_t k = 0, count; k < weight.K; k += count) {
      count = smaller(run, weight.K - k);
      for (int64_t m = 0; m < rows; ++m) {
        to_floats(job.x, (row + m) * weight.K + k, count, job.type, x + m * kStride);
      }
      const Mind mind = what_to_mind(k + count - 1, padded - kStep);
      Ahead coming = ahead(k + run, weight.K);
      int64_t at = 0;
      for (; at + kTileSteps * kStep <= padded; at += kTileSteps * kStep) {
        multiply_tiles<kTileSteps>(mind, k, count, at, x, kStride, &coming, total, width);
      }
      for (; at < padded; at += kStep) {
        multiply_tiles<1>(mind, k, count, at, x, kStride, &coming, total, width);
      }
    }
    for (int64_t m = 0; m < rows; ++m) write(m, total + m * width);
  }

  void run_part(int64_t part) const {
    const int64_t first = part * job.part_rows, last = smaller(first + job.part_rows, weight.K);
    if (rows == 1) return few_rows<1>(part, first, last);
    if constexpr (Isa::kFewRows >= 2) {
      if (rows == 2) return few_rows<2>(part, first, last);
    }
    if constexpr (Isa::kFewRows >= 4) {
      if (rows == 3) return few_rows<3>(part, first, last);
      if (rows == 4) return few_rows<4>(part, first, last);
    }
  }
};

template <class Decoder>
void matmul_with(const MatMul& job, int64_t task) {
  Product<Decoder> product{job};
  // Parts that follow each other lie side by side; so do blocks of results that read the same weights.
  const int64_t blocks = job.column_blocks(), rows = job.row_blocks();
  const int64_t block = job.parts ? task % blocks : task / rows;
  product.column = block * job.columns;
  product.columns = smaller(job.columns, job.weight.N - product.column);
  if (job.parts) {
    product.rows = job.M;
    return product.run_part(task / blocks);
  }
  product.row = task % rows * job.rows;
  product.rows = smaller(job.rows, job.M - product.row);
  product.many_rows();
}

inline void finish(const MatMul& job, int64_t block) {
  const int64_t column = block * job.columns, columns = smaller(job.columns, job.weight.N - column);
  for (int64_t m = 0; m < job.M; ++m) {
    float* total = job.sums + m * job.weight.N + column;
    for (int64_t part = 1; part < job.parts; ++part) {
      const float* more = total + part * job.M * job.weight.N;
      for (int64_t i = 0; i < columns; ++i) total[i] += more[i];
    }
    from_floats(total, columns, job.type, job.y, m * job.weight.N + column);
  }
}

template <class Decoder>
void dequantize_with(const Dequantize& job, int64_t task) {
  const int bits = job.format->bits;
  const uint64_t count = static_cast<uint64_t>(job.outer * job.length * job.inner);
  const uint64_t scales = job.one_scale ? 1 : static_cast<uint64_t>(job.outer * job.groups() * job.inner);
  const Decoder decoder{*job.format, job.packed, packed_bytes(count, bits)};
  const Decoder zero_decoder{*job.format, job.zero_point, packed_bytes(scales, bits)};
  const int64_t groups = job.groups(), per_outer = job.inner == 1 ? groups : job.length;
  const int64_t first = task * job.rows, last = smaller(first + job.rows, job.row_count());
  float values[kWidest], scale[kWidest], zero[kWidest];
  for (int64_t r = first; r < last; ++r) {
    const int64_t outer = r / per_outer, at = r % per_outer;
    const int64_t group = job.inner == 1 ? at : at / job.block;
    const int64_t start = job.inner == 1 ? outer * job.length + at * job.block : r * job.inner;
    const int64_t width = job.inner == 1 ? smaller(job.block, job.length - at * job.block) : job.inner;
    const bool per_element = !job.one_scale && job.inner != 1;
    for (int64_t done = 0; done < width; done += kWidest) {
      const int64_t part = smaller(kWidest, width - done);
      const int64_t scale_at = job.one_scale ? 0 : (outer * groups + group) * job.inner + (per_element ? done : 0);
      const int64_t stored = per_element ? part : 1;
      decode(decoder, job.packed, static_cast<uint64_t>(start + done), bits, part, values);
      to_floats(job.scale, scale_at, stored, job.scale_type, scale);
      if (job.zero_point) {
        decode(zero_decoder, job.zero_point, static_cast<uint64_t>(scale_at), bits, stored, zero);
        for (int64_t i = 0; i < part; ++i) values[i] -= zero[per_element ? i : 0];
      }
      for (int64_t i = 0; i < part; ++i) values[i] *= scale[per_element ? i : 0];
      from_floats(values, part, job.type, job.y, start + done);
    }
  }
}

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
