// rms_norm, add_rms_norm, silu_mul: one pass to reduce, one to write; a row never leaves its
// thread.

// Four sums side by side: a shorter chain to wait for, and a quarter of the rounding where vectors
// are narrow (one sum of 7168 squares in four lanes was off by 4 units in the last place).
template <class T>
SEEKERNEL_INLINE float sum_of_squares(const T* x, int64_t n) {
  vfloat sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    for (int j = 0; j < 4; ++j) {
      const vfloat v = load(x + i + j * kWidth);
      sums[j] += v * v;
    }
  }
  for (; i + kWidth <= n; i += kWidth) {
    const vfloat v = load(x + i);
    sums[0] += v * v;
  }
  float tail = 0.0f;
  for (; i < n; ++i) tail += to_float(x[i]) * to_float(x[i]);
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3])) + tail;
}

template <class T, class W>
static void rms_norm_rows(const RmsNormArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t n = args.n;
  const int64_t n_vector = n - n % kWidth;
  const W* weight = static_cast<const W*>(args.weight);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = static_cast<const T*>(args.x) + row * args.stride_x_m;
    T* out = static_cast<T*>(args.out) + row * args.stride_out_m;
    const T* source = x;
    if (args.residual != nullptr) {
      T* residual = static_cast<T*>(args.residual) + row * args.stride_residual_m;
      source = residual;
      for (int64_t i = 0; i < n_vector; i += kWidth) {
        store(residual + i, load(residual + i) + load(x + i));
      }
      for (int64_t i = n_vector; i < n; ++i) {
        store_one(residual + i, to_float(residual[i]) + to_float(x[i]));
      }
    }
    const float mean = sum_of_squares(source, n) / static_cast<float>(n);
    const float inverse = 1.0f / __builtin_sqrtf(mean + args.eps);
    for (int64_t i = 0; i < n_vector; i += kWidth) {
      store(out + i, load(source + i) * inverse * load(weight + i));
    }
    for (int64_t i = n_vector; i < n; ++i) {
      store_one(out + i, to_float(source[i]) * inverse * to_float(weight[i]));
    }
  }
}

static void rms_norm(const RmsNormArgs& args, int64_t row_begin, int64_t row_end) {
  const bool wide = args.dtype == Dtype::kFloat32;
  const bool wide_weight = args.weight_dtype == Dtype::kFloat32;
  if (wide && wide_weight) return rms_norm_rows<float, float>(args, row_begin, row_end);
  if (wide) return rms_norm_rows<float, bfloat16>(args, row_begin, row_end);
  if (wide_weight) return rms_norm_rows<bfloat16, float>(args, row_begin, row_end);
  rms_norm_rows<bfloat16, bfloat16>(args, row_begin, row_end);
}

template <class T>
static void silu_mul_rows(const SiluMulArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t n_vector = args.n - args.n % kWidth;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* gate = static_cast<const T*>(args.x) + row * args.stride_x_m;
    const T* up = gate + args.n;
    T* out = static_cast<T*>(args.out) + row * args.stride_out_m;
    for (int64_t i = 0; i < n_vector; i += kWidth) {
      const vfloat g = load(gate + i);
      store(out + i, g / (1.0f + vexp(-g)) * load(up + i));
    }
    for (int64_t i = n_vector; i < args.n; ++i) {
      const float g = to_float(gate[i]);
      store_one(out + i, g / (1.0f + exp_one(-g)) * to_float(up[i]));
    }
  }
}

static void silu_mul(const SiluMulArgs& args, int64_t row_begin, int64_t row_end) {
  if (args.dtype == Dtype::kFloat32) return silu_mul_rows<float>(args, row_begin, row_end);
  silu_mul_rows<bfloat16>(args, row_begin, row_end);
}

template <class T, class E>
static void embed_rows(const EmbedArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t n_vector = args.n - args.n % kWidth;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const E* from = static_cast<const E*>(args.table) + args.ids[row] * args.stride_table;
    T* out = static_cast<T*>(args.out) + row * args.stride_out_m;
    for (int64_t i = 0; i < n_vector; i += kWidth) store(out + i, load(from + i));
    for (int64_t i = n_vector; i < args.n; ++i) store_one(out + i, to_float(from[i]));
  }
}

static void embed(const EmbedArgs& args, int64_t row_begin, int64_t row_end) {
  const bool wide = args.dtype == Dtype::kFloat32;
  const bool wide_table = args.table_dtype == Dtype::kFloat32;
  if (wide && wide_table) return embed_rows<float, float>(args, row_begin, row_end);
  if (wide) return embed_rows<float, bfloat16>(args, row_begin, row_end);
  if (wide_table) return embed_rows<bfloat16, float>(args, row_begin, row_end);
  embed_rows<bfloat16, bfloat16>(args, row_begin, row_end);
}

template <class T>
static void add_rows(const AddArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t n_vector = args.n - args.n % kWidth;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = static_cast<const T*>(args.x) + row * args.stride_x_m;
    T* out = static_cast<T*>(args.out) + row * args.stride_out_m;
    for (int64_t i = 0; i < n_vector; i += kWidth) store(out + i, load(out + i) + load(x + i));
    for (int64_t i = n_vector; i < args.n; ++i)
      store_one(out + i, to_float(out[i]) + to_float(x[i]));
  }
}

static void add(const AddArgs& args, int64_t row_begin, int64_t row_end) {
  if (args.dtype == Dtype::kFloat32) return add_rows<float>(args, row_begin, row_end);
  add_rows<bfloat16>(args, row_begin, row_end);
}
