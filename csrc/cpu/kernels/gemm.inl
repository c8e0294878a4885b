// One task of a GEMM: up to max_rows rows of activations times up to kGemmSlab rows of weights.
//
//   few rows (decode)    every chunk of weights is expanded in registers and used for all rows
//   many rows (prefill)  a few weight rows at a time are expanded into a buffer of floats in L1,
//                        then swept by tiles over all rows
//
// Weights stream once per task. With e4m3 weights the activations are first multiplied by the scale
// of each 128x128 block: one multiplication per kGemmSlab rows of weights, none per weight.

constexpr int64_t kMaxRows = 128;                       // rows of activations in a task
constexpr int64_t kScaledFloats = 8192;                 // 32 KiB: the scaled activations stay in L1
constexpr bool kManyRegisters = kWidth == 16;           // 32 vector registers, else 16
constexpr int64_t kMaxDirect = kManyRegisters ? 9 : 4;  // rows up to which weights are not buffered
constexpr int kDirectCols = kManyRegisters ? 4 : 2;
constexpr int kTileCols = kManyRegisters ? 6 : 3;

// Rows of the next tile when `left` are left; no tile of one row unless there is only one.
template <class W>
SEEKERNEL_INLINE int64_t tile_rows(int64_t left) {
  constexpr bool kWideTile = sizeof(W) == sizeof(float) || !kManyRegisters;
  if (kWideTile && (left > 9 || left % 4 == 0)) return 4;
  if (left == 4) return 2;
  return left < 3 ? left : 3;
}

// Scratch: scaled activations, expanded weights, sums of gate and up.
constexpr int64_t kScratchX = kMaxRows * kBlockK;
constexpr int64_t kScratchW = kTileCols * kBlockK;
constexpr int64_t kScratchAcc = kMaxRows * kGemmSlab;
constexpr int64_t kScratchFloats = kScratchX + kScratchW + 2 * kScratchAcc;

static_assert(kScratchX >= kScaledFloats);

struct GemmScratch {
  float* x;
  float* w;
  float* acc;
};

// All rows of x against NR rows of weights, over one block of k.
template <class W, int NR, bool kStream>
static void sweep_rows(const float* x, int64_t stride_x, const W* w, int64_t stride_w, int64_t k,
                       int64_t rows, float* acc) {
  for (int64_t row = 0; row < rows;) {
    const int64_t count = tile_rows<W>(rows - row);
    const float* x_row = x + row * stride_x;
    float* acc_row = acc + row * kGemmSlab;
    switch (count) {
      case 1:
        gemm_tile<W, 1, NR, kStream>(x_row, stride_x, w, stride_w, k, acc_row);
        break;
      case 2:
        gemm_tile<W, 2, NR, kStream>(x_row, stride_x, w, stride_w, k, acc_row);
        break;
      case 3:
        gemm_tile<W, 3, NR, kStream>(x_row, stride_x, w, stride_w, k, acc_row);
        break;
      case 4:
        gemm_tile<W, 4, NR, kStream>(x_row, stride_x, w, stride_w, k, acc_row);
        break;
    }
    row += count;
  }
}

// Few rows: NR rows of weights at a time, straight from memory.
template <class W, int NR>
static void multiply_direct(const float* x, int64_t stride_x, const W* w, int64_t stride_w,
                            int64_t k, int64_t rows, int64_t cols, float* acc) {
  int64_t col = 0;
  for (; col + NR <= cols; col += NR) {
    for (int64_t i = 0; i < k; i += kBlockK) {
      const int64_t length = k - i < kBlockK ? k - i : kBlockK;
      sweep_rows<W, NR, true>(x + i, stride_x, w + col * stride_w + i, stride_w, length, rows,
                              acc + col);
    }
  }
  if constexpr (NR > 1) {
    if (col == cols) return;
    multiply_direct<W, 1>(x, stride_x, w + col * stride_w, stride_w, k, rows, cols - col,
                          acc + col);
  }
}

// Many rows: one block of k, weights through the buffer.
template <class W>
static void multiply_expanded(const float* x, int64_t stride_x, const W* w, int64_t stride_w,
                              int64_t k, int64_t rows, int64_t cols, float* buffer, float* acc) {
  const int64_t k_expanded = (k + kChunk<W> - 1) / kChunk<W> * kChunk<W>;
  for (int64_t col = 0; col < cols; col += kTileCols) {
    const int64_t width = cols - col < kTileCols ? cols - col : kTileCols;
    expand_rows(w + col * stride_w, stride_w, width, k, buffer);
    if (width == kTileCols) {
      sweep_rows<float, kTileCols, false>(x, stride_x, buffer, kBlockK, k_expanded, rows,
                                          acc + col);
      continue;
    }
    for (int64_t c = 0; c < width; ++c) {
      sweep_rows<float, 1, false>(x, stride_x, buffer + c * kBlockK, kBlockK, k_expanded, rows,
                                  acc + col + c);
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
    if (rows == 1) {
      multiply_direct<W, 8>(x, stride_x, w + begin, args.stride_b_n, k, rows, cols, acc);
    } else if (rows == 2) {
      multiply_direct<W, 4>(x, stride_x, w + begin, args.stride_b_n, k, rows, cols, acc);
    } else if (direct) {
      multiply_direct<W, kDirectCols>(x, stride_x, w + begin, args.stride_b_n, k, rows, cols, acc);
    } else {
      multiply_expanded(x, stride_x, w + begin, args.stride_b_n, k, rows, cols, scratch.w, acc);
    }
  }
}

// Sums to out, through SwiGLU if asked; acc is followed by the sums of the up rows.
template <class Out>
static void write_out(const GemmArgs& args, const GemmTask& task, const float* acc) {
  const float unscale_all = args.b_dtype == Dtype::kFloat8E4M3 ? kFp8Half
                            : args.b_dtype == Dtype::kInt4     ? args.alpha
                                                               : 1.0f;
  const int64_t cols = task.col_end - task.col_begin;
  const int64_t cols_vector = cols - cols % kWidth;
  for (int64_t row = task.row_begin; row < task.row_end; ++row, acc += kGemmSlab) {
    Out* out = static_cast<Out*>(args.out) + row_offset(args.out_rows, row) + task.col_begin;
    const float* up = acc + kScratchAcc;
    const float unscale =
        args.row_weight != nullptr ? unscale_all * args.row_weight[row] : unscale_all;
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
  if constexpr (kLanes<W> == 8) {
    multiply_int4(args, task, parts.acc);
  } else {
    multiply<W>(args, task, 0, parts, parts.acc);
    if (args.swiglu) multiply<W>(args, task, 1, parts, parts.acc + kScratchAcc);
  }
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
    case Dtype::kInt4:
      return run_task<int4x2>(args, task, scratch);
  }
}
