// Products with a weight that is decoded on the way; part of kernels.inl.

// The bias of some columns, as float32.
class Bias {
 public:
  Bias(const MatMul& job, int64_t column, int64_t columns) : columns_(job.bias ? columns : 0) {
    if (columns_) to_floats(job.bias, column, columns_, job.type, values_);
  }

  void add_to(float* sums) const {
    for (int64_t i = 0; i < columns_; ++i) sums[i] += values_[i];
  }

 private:
  int64_t columns_;
  float values_[kMaxColumns];
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

    ONNXQ_INLINE void next() {
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
  ONNXQ_INLINE void decode_step(const typename Decoder::Row& row, const uint8_t* from, int64_t at, const Group& group,
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

  // Asks for the first run of rows, which no other comes before.
  void ask_for_run(int64_t first, int64_t last) const {
    Ahead start = ahead(first, last);
    for (int64_t at = 0; at < kRun * columns / 8 * weight.format->bits; at += 64) start.next(64);
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
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        Vec values[4];
        decode_step<M>(codes.now(), from, s * kStep, group, values);
        from += one;
#pragma GCC unroll 4
        for (int m = 0; m < R; ++m) {
          const Vec factor = Isa::set1(x[m * stride + i]);
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) sum[m][4 * s + v] = Isa::fmadd(values[v], factor, sum[m][4 * s + v]);
        }
      }
    }
    *ahead = next;
    const int64_t padded = columns_padded();
    for (int m = 0; m < R; ++m) {
      for (int v = 0; v < 4 * S; ++v) {
        float* place = total + m * padded + at + v * kLanes;
        const Vec scale = Isa::load(group.scale + v * kLanes);
        Isa::store(place, Isa::fmadd(sum[m][v], scale, Isa::load(place)));
      }
    }
  }

  template <int R, int S>
  void multiply_minding(Mind mind, int64_t k, int64_t count, int64_t at, const float* x, int64_t stride, Ahead* ahead,
                        float* total) const {
    Group group;
    const int64_t g = k / weight.block;
    group.read(weight, zero_decoder, g, column + at, smaller(S * kStep, columns - at));
    ask_for_scales(g + 1, at, S * kStep);
    if constexpr (Decoder::kReaches) {
      if (mind == Mind::kNothing) return multiply<R, S, Mind::kNothing>(k, count, at, x, stride, group, ahead, total);
      if (mind == Mind::kZeroPoints) {
        return multiply<R, S, Mind::kZeroPoints>(k, count, at, x, stride, group, ahead, total);
      }
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
    alignas(64) float total[R * kMaxColumns];
    alignas(64) float buffer[R * kRun];
    const int64_t padded = columns_padded();
    memset(total, 0, static_cast<size_t>(R * padded) * sizeof(float));
    ask_for_run(first, last);
    for (int64_t k = first, count; k < last; k += count) {
      count = smaller(smaller(kRun, last - k), (k / weight.block + 1) * weight.block - k);
      int64_t stride = kRun;
      const float* x = activations(k, count, buffer, &stride);
      const Mind mind = what_to_mind(k + count - 1, padded - kStep);
      Ahead coming = ahead(k + kRun, last);
      constexpr int S = R == 1 ? Isa::kGemvSteps : R == 2 ? (Isa::kGemvSteps + 1) / 2 : 1;
      int64_t at = 0;
      for (; at + S * kStep <= padded; at += S * kStep) {
        multiply_minding<R, S>(mind, k, count, at, x, stride, &coming, total);
      }
      for (; at < padded; at += kStep) multiply_minding<R, 1>(mind, k, count, at, x, stride, &coming, total);
    }
    write_part(part, total, padded);
  }

  // Sums over a part of K, `width` apart.
  void write_part(int64_t part, const float* total, int64_t width) const {
    for (int64_t m = 0; m < rows; ++m) {
      float* to = job.sums + (part * job.M + m) * weight.N + column;
      memcpy(to, total + m * width, static_cast<size_t>(columns) * sizeof(float));
    }
  }

  // Sums over all of K.
  void write_results(float* total, int64_t width) const {
    const Bias bias(job, column, columns);
    for (int64_t m = 0; m < rows; ++m) {
      bias.add_to(total + m * width);
      from_floats(total + m * width, columns, job.type, job.y, (row + m) * weight.N + column);
    }
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
    write_results(total, width);
  }

  void run(int64_t part) const {
    if (!job.parts) return many_rows();
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

template <class Product>
void run_task(const MatMul& job, int64_t task) {
  Product product{{job}};
  // Parts that follow each other lie side by side; so do blocks of results that read the same weights.
  const int64_t blocks = job.column_blocks(), rows = job.row_blocks();
  const int64_t block = job.parts ? task % blocks : task / rows;
  product.column = block * job.columns;
  product.columns = smaller(job.columns, job.weight.N - product.column);
  if (job.parts) {
    product.rows = job.M;
    return product.run(task / blocks);
  }
  product.row = task % rows * job.rows;
  product.rows = smaller(job.rows, job.M - product.row);
  product.run(0);
}

template <class Decoder>
void matmul_with(const MatMul& job, int64_t task) {
  run_task<Product<Decoder>>(job, task);
}

inline void finish(const MatMul& job, int64_t block) {
  const int64_t column = block * job.columns, columns = smaller(job.columns, job.weight.N - column);
  const Bias bias(job, column, columns);
  for (int64_t m = 0; m < job.M; ++m) {
    float* total = job.sums + m * job.weight.N + column;
    for (int64_t part = 1; part < job.parts; ++part) {
      const float* more = total + part * job.M * job.weight.N;
      for (int64_t i = 0; i < columns; ++i) total[i] += more[i];
    }
    bias.add_to(total);
    from_floats(total, columns, job.type, job.y, m * job.weight.N + column);
  }
}
