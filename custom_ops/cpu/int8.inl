// Products with activations that are rounded to int8; included by the instruction sets that make them faster.
//
// Each value of the weight is an integer times the unit of its format. `Dot::add` multiplies four rows of the weight,
// as unsigned bytes (the integer plus kByteOffset), with four activations and adds all four products to a 32-bit lane.
// What the offset adds is taken off again: it is the same for all columns.
//
// A decoder for this reads a step of columns of a row (`row_codes`), and makes four vectors of bytes of four such rows
// (`interleave`): byte b of lane l of vector v is row b of column kLanes v + l.

constexpr int kByteOffset = 64;

// What stands for a code below 64 in such products; those of a format with fewer repeat.
uint8_t byte_of_code(const Format& format, int code) {
  const float value = format.values[code & ((1 << format.bits) - 1)];
  return static_cast<uint8_t>(static_cast<int>(value / format.int8_unit) + kByteOffset);
}

template <class Decoder, class Dot>
struct RoundedProduct : Product<Decoder> {
  using Base = Product<Decoder>;
  using Ints = typename Dot::Ints;
  using Base::column, Base::columns, Base::decoder, Base::job, Base::row, Base::rows, Base::weight, Base::zero_decoder;
  using typename Base::Mind;

  // A step of columns of `count` rows, four vectors for four rows. A row past the last is another one: its activations
  // are zero.
  template <bool Reach>
  ONNXQ_NOINLINE void decode_quads(int64_t k, int64_t count, int64_t at, Ahead* ahead, Ints* out) const {
    const int64_t each = this->template step_bytes<1>(), offset = at / 8 * weight.format->bits;
    Ahead next = *ahead;
    typename Base::Rows codes(*this, k);
    for (int64_t i = 0; i < count; i += 4) {
      typename Decoder::RowCodes four[4];
      next.next(4 * each);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        four[r] = decoder.template row_codes<Reach>(codes.now(), codes.now().bytes + offset);
        if (i + r + 1 < count) codes.next();
      }
      decoder.interleave(four, out + i);
    }
    *ahead = next;
  }

  // Adds the products of R rows of activations from `top` on with a run of decoded weights to `total`, `width` apart.
  template <int R>
  ONNXQ_NOINLINE void add_products(int64_t top, int64_t run, int64_t count, const Ints* weights, const Group& group,
                                   float* total, int64_t width) const {
    const int64_t runs = Rounded::runs(weight.K), first = (row + top) * runs + run;
    const int8_t* x = job.rounded.values + first * kRoundedRun;
    Ints sum[R][4];
#pragma GCC unroll 8
    for (int m = 0; m < R; ++m) {
      const Ints start = Dot::set1(-kByteOffset * job.rounded.sum[first + m * runs]);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sum[m][v] = start;
    }
    for (int64_t i = 0; i < count; i += 4) {
      Ints factor[R];
#pragma GCC unroll 8
      for (int m = 0; m < R; ++m) {
        int32_t four;
        memcpy(&four, x + m * runs * kRoundedRun + i, sizeof four);
        factor[m] = Dot::set1(four);
      }
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const Ints values = weights[i + v];
#pragma GCC unroll 8
        for (int m = 0; m < R; ++m) sum[m][v] = Dot::add(sum[m][v], values, factor[m]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < R; ++m) {
      const Vec x_scale = Isa::set1(job.rounded.scale[first + m * runs] * weight.format->int8_unit);
      const Vec x_sum = Isa::set1(static_cast<float>(-job.rounded.sum[first + m * runs]));
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        Vec value = Dot::to_floats(sum[m][v]);
        // Zero points are those of integers, whose unit is 1.
        if (weight.zero_point) value = Isa::fmadd(Isa::load(group.zero + v * kLanes), x_sum, value);
        float* place = total + m * width + v * kLanes;
        const Vec scaled = Isa::mul(value, Isa::load(group.scale + v * kLanes));
        Isa::store(place, Isa::fmadd(scaled, x_scale, Isa::load(place)));
      }
    }
  }

  template <int R>
  void add_rows(int64_t height, int64_t top, int64_t run, int64_t count, const Ints* weights, const Group& group,
                float* total, int64_t width) const {
    if constexpr (R > 1) {
      if (height < R) return add_rows<R - 1>(height, top, run, count, weights, group, total, width);
    }
    add_products<R>(top, run, count, weights, group, total, width);
  }

  // Sums over rows `first` to `last` of the weight: `rows` of them, `width` apart.
  void sum_rows(int64_t first, int64_t last, float* total, int64_t width) const {
    const int64_t padded = this->columns_padded(), tiles = (rows + Dot::kRows - 1) / Dot::kRows;
    alignas(64) Ints weights[kRoundedRun];
    this->ask_for_run(first, last);
    for (int64_t k = first; k < last; k += kRoundedRun) {
      const int64_t count = smaller(kRoundedRun, last - k), g = k / weight.block;
      const bool reach = this->what_to_mind(k + count - 1, padded - kStep) != Mind::kZeroPointsAndEnd;
      Ahead coming = this->ahead(k + kRoundedRun, last);
      for (int64_t at = 0; at < padded; at += kStep) {
        if (reach) {
          decode_quads<true>(k, count, at, &coming, weights);
        } else {
          decode_quads<false>(k, count, at, &coming, weights);
        }
        Group group;
        group.read(weight, zero_decoder, g, column + at, smaller(kStep, columns - at));
        this->ask_for_scales(g + 1, at, kStep);
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t top = rows * t / tiles, below = rows * (t + 1) / tiles;
          add_rows<Dot::kRows>(below - top, top, k / kRoundedRun, count, weights, group, total + top * width + at,
                               width);
        }
      }
    }
  }

  void run(int64_t part) const {
    alignas(64) float total[kMaxResults + 16 * kMaxRows];
    const int64_t width = this->columns_padded() + 16;  // no power of two, as in many_rows
    memset(total, 0, static_cast<size_t>(rows * width) * sizeof(float));
    const int64_t first = part * job.part_rows;
    sum_rows(first, job.parts ? smaller(first + job.part_rows, weight.K) : weight.K, total, width);
    if (job.parts) return this->write_part(part, total, width);
    this->write_results(total, width);
  }
};

// Every kRoundedRun activations of a row share a scale, the largest magnitude / 127. Where one of them is no finite
// number, so are all results of the row.
void round_row(const MatMul& job, int64_t m) {
  const int64_t K = job.weight.K, runs = Rounded::runs(K);
  constexpr float kSmallest = 1e-30f;  // 127 / smaller numbers could overflow
  for (int64_t run = 0; run < runs; ++run) {
    alignas(64) float x[kRoundedRun] = {};
    to_floats(job.x, m * K + run * kRoundedRun, smaller(kRoundedRun, K - run * kRoundedRun), job.type, x);
    uint32_t magnitude = 0;  // the largest, as bits: they are in the order of the numbers, infinity and NaN last
    for (const float each : x) {
      const uint32_t bits = bits_of_float(each) & 0x7fffffff;
      magnitude = bits > magnitude ? bits : magnitude;
    }
    if (magnitude >= 0x7f800000) {
      magnitude = 0x7fc00000;  // NaN
      memset(x, 0, sizeof x);
    }
    const float largest = float_of_bits(magnitude);
    const float factor = largest >= kSmallest ? 127 / largest : 0;
    const int64_t at = m * runs + run;
    int8_t* to = job.rounded.values + at * kRoundedRun;
    int32_t sum = 0;
    for (int i = 0; i < kRoundedRun; ++i) {
      const int32_t value = static_cast<int32_t>(rintf(x[i] * factor));
      to[i] = static_cast<int8_t>(value);
      sum += value;
    }
    job.rounded.scale[at] = largest / 127;
    job.rounded.sum[at] = sum;
  }
}
