// mla_prepare, rope_interleaved, mla_gather_latent: rows are independent, nothing is shared.
// `scratch` holds the kv_lora + rope floats of one row.

// Calls f with a value of the type that `dtype` names, so that one body serves every pair of types.
template <class F>
SEEKERNEL_INLINE void with_activation_type(Dtype dtype, const F& f) {
  if (dtype == Dtype::kFloat32) {
    f(float{});
  } else {
    f(bfloat16{});
  }
}

SEEKERNEL_INLINE char* cache_row(const PagedCache& cache, int64_t page, int64_t row) {
  const int64_t element = page * cache.stride_page + row * cache.stride_row;
  return static_cast<char*>(cache.data) + element * cache_element_bytes(cache);
}

template <class T, class W, class Out>
SEEKERNEL_INLINE void rms_row(const T* x, const W* weight, int64_t n, float eps, Out* out) {
  const int64_t n_vector = n - n % kWidth;
  vfloat squares{};
  float tail = 0.0f;
  for (int64_t i = 0; i < n_vector; i += kWidth) squares += load(x + i) * load(x + i);
  for (int64_t i = n_vector; i < n; ++i) tail += to_float(x[i]) * to_float(x[i]);
  const float mean = (reduce_add(squares) + tail) / static_cast<float>(n);
  const float inverse = 1.0f / __builtin_sqrtf(mean + eps);
  for (int64_t i = 0; i < n_vector; i += kWidth) {
    store(out + i, load(x + i) * inverse * load(weight + i));
  }
  for (int64_t i = n_vector; i < n; ++i) {
    store_one(out + i, to_float(x[i]) * inverse * to_float(weight[i]));
  }
}

// Rotates the pairs (x0, x1), (x2, x3), ...; `out` may be `x`.
template <class T, class Out>
SEEKERNEL_INLINE void rope_row(const T* x, const float* cos_sin, int64_t rope, Out* out) {
  const float* sin = cos_sin + rope / 2;
  for (int64_t i = 0; i < rope / 2; ++i) {
    const float a = to_float(x[2 * i]), b = to_float(x[2 * i + 1]);
    store_one(out + 2 * i, a * cos_sin[i] - b * sin[i]);
    store_one(out + 2 * i + 1, a * sin[i] + b * cos_sin[i]);
  }
}

// [rms_norm(latent), rope_interleaved(k_pe)] of one row.
template <class T, class Out>
SEEKERNEL_INLINE void latent_row(const MlaPrepareArgs& args, int64_t row, const T* x, Out* out) {
  with_activation_type(args.kv_weight_dtype, [&](auto weight) {
    using W = decltype(weight);
    rms_row(x, static_cast<const W*>(args.kv_norm_weight), args.cache.kv_lora, args.eps, out);
  });
  rope_row(x + args.cache.kv_lora, args.cos_sin + args.positions[row] * args.stride_cos_sin,
           args.cache.rope, out + args.cache.kv_lora);
}

template <class T>
static void mla_prepare_rows(const MlaPrepareArgs& args, int64_t row_begin, int64_t row_end,
                             float* scratch) {
  const PagedCache& cache = args.cache;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = static_cast<const T*>(args.qkv_a) + row * args.stride_qkv_s;
    if (args.q_lora > 0) {
      T* out = static_cast<T*>(args.q_latent) + row * args.stride_q_latent_s;
      with_activation_type(args.q_weight_dtype, [&](auto weight) {
        using W = decltype(weight);
        rms_row(x, static_cast<const W*>(args.q_norm_weight), args.q_lora, args.eps, out);
      });
      x += args.q_lora;
    }
    const int64_t slot = args.wide_slots ? static_cast<const int64_t*>(args.slots)[row]
                                         : static_cast<const int32_t*>(args.slots)[row];
    if (slot < 0) continue;
    char* out = cache_row(cache, slot / cache.page_size, slot % cache.page_size);
    if (cache.dtype == Dtype::kFloat8E4M3) {
      latent_row(args, row, x, scratch);
      quantize_latent_row(cache, scratch, out);
    } else if (cache.dtype == Dtype::kFloat32) {
      latent_row(args, row, x, reinterpret_cast<float*>(out));
    } else {
      latent_row(args, row, x, reinterpret_cast<bfloat16*>(out));
    }
  }
}

static void mla_prepare(const MlaPrepareArgs& args, int64_t row_begin, int64_t row_end,
                        float* scratch) {
  if (args.dtype == Dtype::kFloat32) {
    return mla_prepare_rows<float>(args, row_begin, row_end, scratch);
  }
  mla_prepare_rows<bfloat16>(args, row_begin, row_end, scratch);
}

static void rope_interleaved(const RopeArgs& args, int64_t row_begin, int64_t row_end) {
  with_activation_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t row = row_begin; row < row_end; ++row) {
      const float* cos_sin = args.cos_sin + args.positions[row] * args.stride_cos_sin;
      T* x = static_cast<T*>(args.x) + row * args.stride_x_s;
      for (int64_t head = 0; head < args.h; ++head, x += args.stride_x_h) {
        rope_row(x, cos_sin, args.rope, x);
      }
    }
  });
}

static void mla_gather_latent(const MlaGatherArgs& args, const int32_t* pages, int64_t token_begin,
                              int64_t token_end, int64_t row_begin, float* scratch) {
  const ExactSubnormals exact;
  const PagedCache& cache = args.cache;
  for (int64_t token = token_begin; token < token_end; ++token) {
    const int64_t row = row_begin + token - token_begin;
    const float* from = scratch;
    widen_latent_row(
        cache, cache_row(cache, pages[token / cache.page_size], token % cache.page_size), scratch);
    with_activation_type(args.latent_dtype, [&](auto to) {
      using To = decltype(to);
      convert_row(from, cache.kv_lora, static_cast<To*>(args.latent) + row * args.stride_latent_s);
    });
    with_activation_type(args.k_pe_dtype, [&](auto to) {
      using To = decltype(to);
      convert_row(from + cache.kv_lora, cache.rope,
                  static_cast<To*>(args.k_pe) + row * args.stride_k_pe_s);
    });
  }
}
