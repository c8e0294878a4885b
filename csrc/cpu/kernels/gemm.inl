// One task of a GEMM: up to max_rows rows of activations times up to kGemmSlab rows of weights.
//
//   few rows (decode)    every chunk of weights is expanded in registers and used for all rows
//   many rows (prefill)  a few weight rows at a time are expanded into an L1-sized buffer of
//   floats,
//                        then swept by tiles over all rows
//
// Weights stream once per task. With e4m3 weights the activations are first multiplied by the scale
// of each 128x128 block: one multiplication per kGemmSlab rows of weights, none per weight.

constexpr int64_t kMaxRows = 128;                // rows of activations in a task
constexpr int64_t kMaxDirect = 8;                // up to here weights are expanded in registers
constexpr int64_t kScaledFloats = 8192;          // 32 KiB: the scaled activations stay in L1
constexpr int kTileRows = 4;                     // the tile of the many-row path
constexpr int kTileCols = kWidth == 16 ? 6 : 3;  // 24 or 12 accumulators of 32 or 16 registers

// Scratch: scaled activations, expanded weights, sums of gate and up.
constexpr int64_t kScratchX =
    kMaxRows * kBlockK > kScaledFloats ? kMaxRows * kBlockK : kScaledFloats;
constexpr int64_t kScratchW = kTileCols * kBlockK;
constexpr int64_t kScratchAcc = kMaxRows * kGemmSlab;
constexpr int64_t kScratchFloats = kScratchX + kScratchW + 2 * kScratchAcc;

struct GemmScratch {
  float* x;
  float* w;
  float* acc;
};

template <class W, int MR, int NR>
static void tile_columns(const float* x, int64_t stride_x, const W* w, int64_t stride_w, int64_t k,
                         int64_t cols, float* acc) {
  int64_t col = 0;
  for (; col + NR <= cols; col += NR) {
    for (int64_t i = 0; i < k; i += kBlockK) {
      const int64_t length = k - i < kBlockK ? k - i : kBlockK;
      gemm_tile<W, MR, NR>(x + i, stride_x, w + col * stride_w + i, stride_w, length, acc + col,
                           kGemmSlab);
    }
  }
  if constexpr (NR > 1) {
    if (col < cols) {
      tile_columns<W, MR, 1>(x, stride_x, w + col * stride_w, stride_w, k, cols - col, acc + col);
    }
  }
}

// Few rows: weights straight from memory.
template <class W>
static void multiply_direct(const float* x, int64_t stride_x, const W* w, int64_t stride_w,
                            int64_t k, int64_t rows, int64_t cols, float* acc) {
  switch (rows) {
    case 1:
      return tile_columns<W, 1, 8>(x, stride_x, w, stride_w, k, cols, acc);
    case 2:
      return tile_columns<W, 2, 4>(x, stride_x, w, stride_w, k, cols, acc);
    case 3:
      return tile_columns<W, 3, 4>(x, stride_x, w, stride_w, k, cols, acc);
    case 4:
      return tile_columns<W, 4, 2>(x, stride_x, w, stride_w, k, cols, acc);
    case 5:
      return tile_columns<W, 5, 2>(x, stride_x, w, stride_w, k, cols, acc);
    case 6:
      return tile_columns<W, 6, 2>(x, stride_x, w, stride_w, k, cols, acc);
    case 7:
      return tile_columns<W, 7, 2>(x, stride_x, w, stride_w, k, cols, acc);
    case 8:
      return tile_columns<W, 8, 2>(x, stride_x, w, stride_w, k, cols, acc);
  }
}

// All rows of x against NR rows of float weights over one block of k.
template <int NR>
static void sweep_rows(const float* x, int64_t stride_x, const float* w, int64_t stride_w,
                       int64_t k, int64_t rows, float* acc) {
  int64_t row = 0;
  for (; row + kTileRows <= rows; row += kTileRows) {
    gemm_tile<float, kTileRows, NR>(x + row * stride_x, stride_x, w, stride_w, k,
                                    acc + row * kGemmSlab, kGemmSlab);
  }
  for (; row < rows; ++row) {
    gemm_tile<float, 1, NR>(x + row * stride_x, stride_x, w, stride_w, k, acc + row * kGemmSlab,
                            kGemmSlab);
  }
}

// Many rows: one block of k, weights through the buffer (floats are swept where they lie).
template <class W>
static void multiply_expanded(const float* x, int64_t stride_x, const W* w, int64_t stride_w,
                              int64_t k, int64_t rows, int64_t cols, float* buffer, float* acc) {
  for (int64_t col = 0; col < cols; col += kTileCols) {
    const int64_t width = cols - col < kTileCols ? cols - col : kTileCols;
    const float* source = buffer;
    int64_t stride_source = kBlockK;
    int64_t length = (k + kChunk<W> - 1) / kChunk<W> * kChunk<W>;
    if constexpr (sizeof(W) == sizeof(float)) {
      source = w + col * stride_w;
      stride_source = stride_w;
      length = k;
    } else {
      expand_rows(w + col * stride_w, stride_w, width, k, buffer);
    }
    if (width == kTileCols) {
      sweep_rows<kTileCols>(x, stride_x, source, stride_source, length, rows, acc + col);
    } else {
      for (int64_t c = 0; c < width; ++c) {
        sweep_rows<1>(x, stride_x, source + c * stride_source, stride_source, length, rows,
                      acc + col + c);
      }
    }
  }
}

// x[m, :] = packed[m, :] * multiplier of the block of 128 that the column is in
static void scale_activations(const float* packed, int64_t stride_packed, const float* scale,
                              int64_t k, int64_t rows, float* x, int64_t stride_x) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* source = packed + row * stride_packed;
    float* target = x + row * stride_x;
    for (int64_t i = 0; i < k; i += 128) {
      const float s = scale[i / 128] * kFp8Half;
      for (int64_t j = i; j < i + 128; j += kWidth) store(target + j, load(source + j) * s);
    }
  }
}

// acc[m, c] = sum over k of packed[m, :] * w[c, :], for the gate (part 0) or up (part 1) rows.
template <class W>
static void multiply(const GemmArgs& args, const GemmTask& task, int64_t part,
                     const GemmScratch& scratch, float* acc) {
  const int64_t rows = task.row_end - task.row_begin;
  const int64_t cols = task.col_end - task.col_begin;
  const W* w = static_cast<const W*>(args.b) + task.group * args.stride_b_g +
               (part * args.n + task.col_begin) * args.stride_b_n;
  const float* packed = args.packed + (task.row_begin - args.packed_begin) * args.stride_packed;
  for (int64_t row = 0; row < rows; ++row) {
    __builtin_memset(acc + row * kGemmSlab, 0, cols * sizeof(float));
  }
  const bool direct = rows <= kMaxDirect;
  const int64_t fitting = kScaledFloats / rows / kBlockK * kBlockK;
  const int64_t step = direct && fitting > kBlockK ? fitting : kBlockK;
  for (int64_t begin = 0; begin < args.k; begin += step) {
    const int64_t k = args.k - begin < step ? args.k - begin : step;
    const float* x = packed + begin;
    int64_t stride_x = args.stride_packed;
    if constexpr (sizeof(W) == 1) {
      const int64_t block = part * ((args.n + 127) / 128) + task.col_begin / 128;
      const float* scale = args.b_scale + task.group * args.stride_b_scale_g +
                           block * args.stride_b_scale_n + begin / 128;
      scale_activations(x, stride_x, scale, k, rows, scratch.x, step);
      x = scratch.x;
      stride_x = step;
    }
    if (direct) {
      multiply_direct(x, stride_x, w + begin, args.stride_b_n, k, rows, cols, acc);
    } else {
      multiply_expanded(x, stride_x, w + begin, args.stride_b_n, k, rows, cols, scratch.w, acc);
    }
  }
}

// Sums to out, through SwiGLU if asked; acc is followed by the sums of the up rows.
template <class Out>
static void write_out(const GemmArgs& args, const GemmTask& task, const float* acc) {
  const float unscale = args.b_dtype == Dtype::kFloat8E4M3 ? kFp8Half : 1.0f;
  const int64_t cols = task.col_end - task.col_begin;
  const int64_t cols_vector = cols - cols % kWidth;
  for (int64_t row = task.row_begin; row < task.row_end; ++row, acc += kGemmSlab) {
    Out* out = static_cast<Out*>(args.out) + row_offset(args.out_rows, row) + task.col_begin;
    const float* up = acc + kScratchAcc;
    if (!args.swiglu) {
      for (int64_t i = 0; i < cols_vector; i += kWidth) store(out + i, load(acc + i) * unscale);
      for (int64_t i = cols_vector; i < cols; ++i) store_one(out + i, acc[i] * unscale);
      continue;
    }
    for (int64_t i = 0; i < cols_vector; i += kWidth) {
      const vfloat g = load(acc + i) * unscale;
      store(out + i, g / (1.0f + vexp(-g)) * (load(up + i) * unscale));
    }
    for (int64_t i = cols_vector; i < cols; ++i) {
      const float g = acc[i] * unscale;
      store_one(out + i, g / (1.0f + exp_one(-g)) * (up[i] * unscale));
    }
  }
}

template <class W>
static void run_task(const GemmArgs& args, const GemmTask& task, float* scratch) {
  const GemmScratch parts{scratch, scratch + kScratchX, scratch + kScratchX + kScratchW};
  multiply<W>(args, task, 0, parts, parts.acc);
  if (args.swiglu) multiply<W>(args, task, 1, parts, parts.acc + kScratchAcc);
  if (args.out_dtype == Dtype::kFloat32) {
    write_out<float>(args, task, parts.acc);
  } else {
    write_out<bfloat16>(args, task, parts.acc);
  }
}

static void gemm_run(const GemmArgs& args, const GemmTask& task, float* scratch) {
  const ExactSubnormals exact;
  switch (args.b_dtype) {
    case Dtype::kFloat32:
      return run_task<float>(args, task, scratch);
    case Dtype::kBFloat16:
      return run_task<bfloat16>(args, task, scratch);
    case Dtype::kFloat8E4M3:
      return run_task<float8_e4m3>(args, task, scratch);
  }
}
