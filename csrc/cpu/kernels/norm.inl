// rms_norm, add_rms_norm, silu_mul: one pass to reduce, one to write; a row never leaves its
// thread.

template <class T, class W>
static void rms_norm_rows(const RmsNormArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t n = args.n;
  const int64_t n_vector = n - n % kWidth;
  const W* weight = static_cast<const W*>(args.weight);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = static_cast<const T*>(args.x) + row * args.stride_x_m;
    T* out = static_cast<T*>(args.out) + row * args.stride_out_m;
    const T* source = x;
    vfloat squares{};
    float tail = 0.0f;
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
    for (int64_t i = 0; i < n_vector; i += kWidth) {
      const vfloat v = load(source + i);
      squares += v * v;
    }
    for (int64_t i = n_vector; i < n; ++i) tail += to_float(source[i]) * to_float(source[i]);
    const float mean = (reduce_add(squares) + tail) / static_cast<float>(n);
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
