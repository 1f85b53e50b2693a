// A weight as numbers; part of kernels.inl.

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
