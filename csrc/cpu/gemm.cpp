// CPU boundary of the GEMM ops: checks, then tasks (rows of a group x slab of weight rows) handed
// out to threads. One engine serves them all; they differ in how rows fall into groups.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/router.h"
#include "host/check.h"

namespace seekernel::cpu {
namespace {

constexpr auto kWide = {ScalarType::Float, ScalarType::BFloat16};
constexpr auto kActivations = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Float8_e4m3fn};
constexpr int64_t kMaxPackedFloats = int64_t{1} << 23;  // 32 MiB of packed activations at a time
constexpr int64_t kInlineProducts = 1 << 16;  // below this a second thread costs more than it saves
constexpr int64_t kRowsPerPackChunk = 16;
constexpr int64_t kTasksPerThread =
    4;  // so that a thread held up by a busy core leaves work to others
constexpr int64_t kSmallestSlab = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory of one thread that grows and stays, aligned for vectors.
class ThreadBuffer {
 public:
  float* get(int64_t floats) {
    if (floats > size_) {
      const size_t bytes = static_cast<size_t>(ceil_div(floats, 16) * 16) * sizeof(float);
      memory_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
      size_ = memory_ ? floats : 0;
      if (!memory_) throw std::bad_alloc();
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t size_ = 0;
};

thread_local ThreadBuffer packed_buffer;
thread_local ThreadBuffer scratch_buffer;

// Rows of one group that one task takes.
struct Segment {
  int64_t group, row_begin, row_end;
};

// How rows fall into groups: runs of rows of one group each, ascending, perhaps with gaps.
using Runs = std::vector<Segment>;

Runs equal_runs(int64_t num_groups, int64_t rows_per_group) {
  Runs runs;
  for (int64_t g = 0; g < num_groups; ++g) {
    runs.push_back({g, g * rows_per_group, (g + 1) * rows_per_group});
  }
  return runs;
}

void run_pass(GemmArgs& args, const std::vector<Segment>& segments, int64_t row_begin,
              int64_t row_end) {
  const GemmKernels& gemm = kernels().gemm;
  const int64_t rows = row_end - row_begin;
  args.packed_begin = row_begin;
  args.packed = packed_buffer.get(rows * args.stride_packed);
  const bool is_small = rows * args.stride_packed <= kInlineProducts;
  const int64_t num_segments = static_cast<int64_t>(segments.size());
  int64_t live_rows = 0;
  for (const Segment& segment : segments) live_rows += segment.row_end - segment.row_begin;
  if (live_rows == rows) {
    parallel_chunks(rows, is_small ? rows : kRowsPerPackChunk, [&](int64_t begin, int64_t end) {
      gemm.pack(args, row_begin + begin, row_begin + end);
    });
  } else {  // rows between groups are not looked at
    parallel_chunks(num_segments, is_small ? num_segments : 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Segment& segment = segments[static_cast<size_t>(i)];
        gemm.pack(args, segment.row_begin, segment.row_end);
      }
    });
  }

  const int64_t wanted = kTasksPerThread * static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t slab = kGemmSlab;
  while (slab > kSmallestSlab && num_segments * ceil_div(args.n, slab) < wanted) slab /= 2;
  const int64_t count = num_segments * ceil_div(args.n, slab);
  const bool is_tiny = rows * args.n * args.k <= kInlineProducts;
  parallel_chunks(count, is_tiny ? count : 1, [&](int64_t begin, int64_t end) {
    float* scratch = scratch_buffer.get(gemm.scratch_floats);
    for (int64_t i = begin; i < end; ++i) {
      // Segments run fastest: those of one group find its slab of weights in cache.
      const Segment& segment = segments[static_cast<size_t>(i % num_segments)];
      const int64_t col = i / num_segments * slab;
      gemm.run(args,
               {.group = segment.group,
                .row_begin = segment.row_begin,
                .row_end = segment.row_end,
                .col_begin = col,
                .col_end = col + slab < args.n ? col + slab : args.n},
               scratch);
    }
  });
}

void run(GemmArgs& args, const Runs& runs) {
  if (args.n == 0) return;
  thread_local std::vector<Segment> segments;
  const int64_t max_rows = kernels().gemm.max_rows;
  args.stride_packed = gemm_packed_stride(args.k);
  const int64_t rows_per_pass =
      args.stride_packed > 0 ? ceil_div(kMaxPackedFloats, args.stride_packed) : kMaxPackedFloats;
  segments.clear();
  int64_t pass_end = 0;
  const auto flush = [&] {
    if (segments.empty()) return;
    run_pass(args, segments, segments.front().row_begin, segments.back().row_end);
    segments.clear();
  };
  for (const Segment& run : runs) {
    for (int64_t row = run.row_begin; row < run.row_end;) {
      if (segments.empty() || row >= pass_end) {
        flush();
        pass_end = row + rows_per_pass;
      }
      const int64_t end = std::min({row + max_rows, run.row_end, pass_end});
      segments.push_back({run.group, row, end});
      row = end;
    }
  }
  flush();
}

// Activations [m, k], or [g, m, k] when `g` is given, with their scales if they are float8_e4m3fn.
void take_activations(const Checker& check, const Tensor& a, const OptionalTensor& a_scale, Dim* g,
                      Dim& m, Dim& k, GemmArgs& args) {
  const auto activations = check("a", a);
  if (g != nullptr) {
    activations.shape({*g, m, k}).dtype(kActivations).last_dim_contiguous();
    args.a_rows = {.rows_per_group = std::max<int64_t>(m, 1),
                   .stride_g = a.stride(0),
                   .stride_m = a.stride(1)};
  } else {
    activations.shape({m, k}).dtype(kActivations).last_dim_contiguous();
    args.a_rows = {.rows_per_group = INT64_MAX, .stride_g = 0, .stride_m = a.stride(0)};
  }
  const bool is_fp8 = a.scalar_type() == ScalarType::Float8_e4m3fn;
  check.require(is_fp8 == a_scale.has_value(),
                std::string("a_scale: expected ") +
                    (is_fp8 ? "a tensor as a is float8_e4m3fn, got None"
                            : "None as a is not float8_e4m3fn, got a tensor"));
  args.a_dtype = dtype_of(a);
  args.a = a.const_data_ptr();
  if (!is_fp8) return;
  const auto scale = check("a_scale", *a_scale);
  const int64_t k_blocks = ceil_div(k, 128), padded_m = ceil_div(m, 4) * 4;
  if (g != nullptr) {
    scale.shape({*g, k_blocks, padded_m}).dtype({ScalarType::Float}).last_dim_contiguous();
    args.stride_a_scale_g = a_scale->stride(0);
  } else {
    scale.shape({k_blocks, padded_m}).dtype({ScalarType::Float}).last_dim_contiguous();
  }
  args.a_scale = static_cast<const float*>(a_scale->const_data_ptr());
  args.stride_a_scale = a_scale->stride(a_scale->dim() - 2);
}

void take_out(const Tensor& out, GemmArgs& args, int64_t n, int64_t k) {
  args.n = n;
  args.k = k;
  args.out_dtype = dtype_of(out);
  args.out = out.mutable_data_ptr();
  args.out_rows = {.rows_per_group = INT64_MAX, .stride_g = 0, .stride_m = out.stride(0)};
}

// Weights [n, k], or [g, n, k] when `g` is given, with their scales if they are float8_e4m3fn. With
// SwiGLU n counts gate and up rows, and each half has block scales of its own.
void take_weights(const Checker& check, const char* name, const Tensor& b, const Tensor* b_scale,
                  Dim* g, int64_t n, Dim& k, GemmArgs& args) {
  if (g != nullptr) {
    check(name, b).shape({*g, n, k}).last_dim_contiguous();
  } else {
    check(name, b).shape({n, k}).last_dim_contiguous();
  }
  const int64_t dim_n = g != nullptr ? 1 : 0;
  args.b_dtype = dtype_of(b);
  args.b = b.const_data_ptr();
  args.stride_b_g = g != nullptr ? b.stride(0) : 0;
  args.stride_b_n = b.stride(dim_n);
  if (b_scale == nullptr) {
    check(name, b).dtype(kWide);
    return;
  }
  check(name, b).dtype({ScalarType::Float8_e4m3fn});
  const int64_t halves = args.swiglu ? 2 : 1;
  const int64_t n_blocks = halves * ceil_div(n / halves, 128), k_blocks = ceil_div(k, 128);
  const auto scale = check("b_scale", *b_scale);
  if (g != nullptr) {
    scale.shape({*g, n_blocks, k_blocks}).dtype({ScalarType::Float}).last_dim_contiguous();
  } else {
    scale.shape({n_blocks, k_blocks}).dtype({ScalarType::Float}).last_dim_contiguous();
  }
  args.b_scale = static_cast<const float*>(b_scale->const_data_ptr());
  args.stride_b_scale_g = g != nullptr ? b_scale->stride(0) : 0;
  args.stride_b_scale_n = b_scale->stride(dim_n);
}

// offsets [g + 1]: from 0, ascending, at most `rows`.
Runs take_offsets(const Checker& check, const Tensor& offsets, int64_t g, int64_t rows) {
  check("offsets", offsets).shape({g + 1}).dtype({ScalarType::Int}).contiguous();
  const auto* values = static_cast<const int32_t*>(offsets.const_data_ptr());
  check.require(values[0] == 0,
                "offsets: expected offsets[0] = 0, got " + std::to_string(values[0]));
  for (int64_t i = 0; i < g; ++i) {
    if (values[i + 1] < values[i]) {
      check.fail("offsets: expected ascending values, got " + std::to_string(values[i]) + " then " +
                 std::to_string(values[i + 1]) + " at " + std::to_string(i + 1));
    }
  }
  if (values[g] > rows) {
    check.fail("offsets: expected at most rows=" + std::to_string(rows) + ", got " +
               std::to_string(values[g]));
  }
  Runs runs;
  for (int64_t i = 0; i < g; ++i) runs.push_back({i, values[i], values[i + 1]});
  return runs;
}

// m_indices [rows]: the group of each row, or -1.
Runs take_indices(const Checker& check, const Tensor& indices, int64_t g, int64_t rows) {
  check("m_indices", indices).shape({rows}).dtype({ScalarType::Int}).contiguous();
  const auto* values = static_cast<const int32_t*>(indices.const_data_ptr());
  Runs runs;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t group = values[row];
    if (group < -1 || group >= g) {
      check.fail("m_indices: expected values in [-1, g=" + std::to_string(g) + "), got " +
                 std::to_string(group) + " at " + std::to_string(row));
    }
    if (group < 0) continue;
    if (!runs.empty() && runs.back().group == group && runs.back().row_end == row) {
      ++runs.back().row_end;
    } else {
      runs.push_back({group, row, row + 1});
    }
  }
  return runs;
}

// masked_m [g]: how many of a group's m rows count.
Runs take_mask(const Checker& check, const Tensor& mask, int64_t g, int64_t m) {
  check("masked_m", mask).shape({g}).dtype({ScalarType::Int}).contiguous();
  const auto* values = static_cast<const int32_t*>(mask.const_data_ptr());
  Runs runs;
  for (int64_t i = 0; i < g; ++i) {
    if (values[i] < 0 || values[i] > m) {
      check.fail("masked_m: expected values in [0, m=" + std::to_string(m) + "], got " +
                 std::to_string(values[i]) + " at " + std::to_string(i));
    }
    runs.push_back({i, i * m, i * m + values[i]});
  }
  return runs;
}

void take_row_token(const Checker& check, const Tensor& row_token, int64_t rows, int64_t used,
                    int64_t m, GemmArgs& args) {
  check("row_token", row_token).shape({rows}).dtype({ScalarType::Int}).contiguous();
  args.row_token = static_cast<const int32_t*>(row_token.const_data_ptr());
  for (int64_t r = 0; r < used; ++r) {
    if (args.row_token[r] < 0 || args.row_token[r] >= m) {
      check.fail("row_token: expected values in [0, m=" + std::to_string(m) + "), got " +
                 std::to_string(args.row_token[r]) + " at " + std::to_string(r));
    }
  }
}

void gemm(const char* op, const char* a_name, const char* b_name, const Tensor& a,
          const OptionalTensor& a_scale, const Tensor& b, const Tensor* b_scale, const Tensor& out,
          std::initializer_list<ScalarType> out_dtypes) {
  Checker check(op);
  Dim m("m"), n("n"), k("k");
  GemmArgs args{};
  if (b_scale == nullptr) check(a_name, a).dtype(kWide);
  take_activations(check, a, a_scale, nullptr, m, k, args);
  check("out", out).shape({m, n}).dtype(out_dtypes).last_dim_contiguous();
  take_out(out, args, n, k);
  take_weights(check, b_name, b, b_scale, nullptr, n, k, args);
  run(args, equal_runs(1, m));
}

void bmm(const char* op, const Tensor& a, const OptionalTensor& a_scale, const Tensor& b,
         const Tensor* b_scale, const Tensor& out) {
  Checker check(op);
  Dim g("g"), m("m"), n("n"), k("k");
  GemmArgs args{};
  if (b_scale == nullptr) check("a", a).dtype(kWide);
  take_activations(check, a, a_scale, &g, m, k, args);
  check("out", out).shape({g, m, n}).dtype(kWide).last_dim_contiguous();
  take_out(out, args, n, k);
  take_weights(check, "b", b, b_scale, &g, n, k, args);
  args.out_rows = {.rows_per_group = m, .stride_g = out.stride(0), .stride_m = out.stride(1)};
  run(args, equal_runs(g, m));
}

void grouped_gemm(const char* op, bool swiglu, const Tensor& a, const OptionalTensor& a_scale,
                  const Tensor& b, const Tensor* b_scale, const Tensor& offsets,
                  const OptionalTensor& row_token, const Tensor& out) {
  Checker check(op);
  Dim m(row_token ? "m" : "rows"), rows("rows"), g("g"), n("n"), k("k");
  GemmArgs args{};
  args.swiglu = swiglu;
  if (b_scale == nullptr) check("a", a).dtype(kWide);
  take_activations(check, a, a_scale, nullptr, m, k, args);
  if (!row_token) rows.bind(m);
  check("out", out).shape({rows, n}).dtype(kWide).last_dim_contiguous();
  take_out(out, args, n, k);
  take_weights(check, "b", b, b_scale, &g, swiglu ? 2 * n : n, k, args);
  const Runs runs = take_offsets(check, offsets, g, rows);
  if (row_token)
    take_row_token(check, *row_token, rows, runs.empty() ? 0 : runs.back().row_end, m, args);
  run(args, runs);
}

void fp8_gemm_nt(const Tensor& a, OptionalTensor a_scale, const Tensor& b, const Tensor& b_scale,
                 const Tensor& out) {
  gemm("fp8_gemm_nt", "a", "b", a, a_scale, b, &b_scale, out, kWide);
}

void gemm_nt(const Tensor& a, const Tensor& b, const Tensor& out) {
  gemm("gemm_nt", "a", "b", a, std::nullopt, b, nullptr, out, kWide);
}

void fp8_bmm_nt(const Tensor& a, OptionalTensor a_scale, const Tensor& b, const Tensor& b_scale,
                const Tensor& out) {
  bmm("fp8_bmm_nt", a, a_scale, b, &b_scale, out);
}

void bmm_nt(const Tensor& a, const Tensor& b, const Tensor& out) {
  bmm("bmm_nt", a, std::nullopt, b, nullptr, out);
}

void fp8_grouped_gemm_nt(const Tensor& a, OptionalTensor a_scale, const Tensor& b,
                         const Tensor& b_scale, const Tensor& offsets, const Tensor& out,
                         std::string layout, OptionalTensor, OptionalTensor,
                         OptionalTensor row_weight, int64_t) {
  const Checker check("fp8_grouped_gemm_nt");
  const bool masked = layout == "masked", by_row = layout == "contiguous";
  check.require(masked || by_row || layout == "offsets",
                "layout: expected 'offsets', 'contiguous' or 'masked', got '" + layout + "'");
  check.require(!row_weight || !masked, "row_weight: expected None where masked, got a tensor");
  Dim rows(masked ? "m" : "rows"), g("g"), n("n"), k("k");
  GemmArgs args{};
  take_activations(check, a, a_scale, masked ? &g : nullptr, rows, k, args);
  const auto result = check("out", out).dtype(kWide).last_dim_contiguous();
  if (masked) {
    result.shape({g, rows, n});
  } else {
    result.shape({rows, n});
  }
  take_out(out, args, n, k);
  if (masked) {
    args.out_rows = {.rows_per_group = std::max<int64_t>(rows, 1),
                     .stride_g = out.stride(0),
                     .stride_m = out.stride(1)};
  }
  take_weights(check, "b", b, &b_scale, &g, n, k, args);
  if (row_weight) {
    check("row_weight", *row_weight).shape({rows}).dtype({ScalarType::Float}).contiguous();
    args.row_weight = static_cast<const float*>(row_weight->const_data_ptr());
  }
  run(args, masked   ? take_mask(check, offsets, g, rows)
            : by_row ? take_indices(check, offsets, g, rows)
                     : take_offsets(check, offsets, g, rows));
}

void fp8_grouped_gemm_swiglu_nt(const Tensor& a, OptionalTensor a_scale, const Tensor& b,
                                const Tensor& b_scale, const Tensor& offsets,
                                OptionalTensor row_token, const Tensor& out,
                                OptionalTensor out_scale, OptionalTensor, OptionalTensor, int64_t) {
  Checker("fp8_grouped_gemm_swiglu_nt")
      .require(!out_scale, "out_scale: expected None on the CPU, got a tensor");
  grouped_gemm("fp8_grouped_gemm_swiglu_nt", true, a, a_scale, b, &b_scale, offsets, row_token,
               out);
}

// Weights of int4: b [g, n, k / 2] bytes, b_scale [g, n, ceil(k / 128)].
void w4a8_grouped_gemm_nt(const Tensor& a, OptionalTensor a_scale, const Tensor& b,
                          const Tensor& b_scale, const Tensor& offsets, const Tensor& out) {
  const Checker check("w4a8_grouped_gemm_nt");
  Dim rows("rows"), g("g"), n("n"), k("k");
  GemmArgs args{};
  check("a", a).shape({rows, k}).dtype(kActivations).last_dim_contiguous();
  const bool is_fp8 = a.scalar_type() == ScalarType::Float8_e4m3fn;
  check.require(is_fp8 == a_scale.has_value(),
                std::string("a_scale: expected ") +
                    (is_fp8 ? "a tensor as a is float8_e4m3fn, got None"
                            : "None as a is not float8_e4m3fn, got a tensor"));
  args.a_dtype = dtype_of(a);
  args.a = a.const_data_ptr();
  args.a_rows = {.rows_per_group = INT64_MAX, .stride_g = 0, .stride_m = a.stride(0)};
  args.alpha = 1.0f;
  if (is_fp8) {
    check("a_scale", *a_scale).shape({1}).dtype({ScalarType::Float});
    args.alpha = *static_cast<const float*>(a_scale->const_data_ptr());
  }
  check("out", out).shape({rows, n}).dtype(kWide).last_dim_contiguous();
  take_out(out, args, n, k);
  check.require(k % 2 == 0, "expected k to be even, got " + k.describe());
  Dim half_k("k/2", k / 2), k_blocks("ceil(k/128)", ceil_div(k, 128));
  check("b", b).shape({g, n, half_k}).dtype({ScalarType::Byte}).last_dim_contiguous();
  check("b_scale", b_scale)
      .shape({g, n, k_blocks})
      .dtype({ScalarType::Float})
      .last_dim_contiguous();
  args.b_dtype = Dtype::kInt4;
  args.b = b.const_data_ptr();
  args.stride_b_g = b.stride(0), args.stride_b_n = b.stride(1);
  args.b_scale = static_cast<const float*>(b_scale.const_data_ptr());
  args.stride_b_scale_g = b_scale.stride(0), args.stride_b_scale_n = b_scale.stride(1);
  run(args, take_offsets(check, offsets, g, rows));
}

void grouped_gemm_nt(const Tensor& a, const Tensor& b, const Tensor& offsets, const Tensor& out) {
  grouped_gemm("grouped_gemm_nt", false, a, std::nullopt, b, nullptr, offsets, std::nullopt, out);
}

void grouped_gemm_swiglu_nt(const Tensor& a, const Tensor& b, const Tensor& offsets,
                            OptionalTensor row_token, const Tensor& out) {
  grouped_gemm("grouped_gemm_swiglu_nt", true, a, std::nullopt, b, nullptr, offsets, row_token,
               out);
}

}  // namespace

void router_gemm(const Tensor& x, const Tensor& weight, const Tensor& out) {
  gemm("router_gemm", "x", "weight", x, std::nullopt, weight, nullptr, out, {ScalarType::Float});
}

}  // namespace seekernel::cpu

STABLE_TORCH_LIBRARY_IMPL(seekernel, CPU, m) {
  m.impl("fp8_gemm_nt", TORCH_BOX(&seekernel::cpu::fp8_gemm_nt));
  m.impl("fp8_bmm_nt", TORCH_BOX(&seekernel::cpu::fp8_bmm_nt));
  m.impl("fp8_grouped_gemm_nt", TORCH_BOX(&seekernel::cpu::fp8_grouped_gemm_nt));
  m.impl("fp8_grouped_gemm_swiglu_nt", TORCH_BOX(&seekernel::cpu::fp8_grouped_gemm_swiglu_nt));
  m.impl("w4a8_grouped_gemm_nt", TORCH_BOX(&seekernel::cpu::w4a8_grouped_gemm_nt));
  m.impl("gemm_nt", TORCH_BOX(&seekernel::cpu::gemm_nt));
  m.impl("bmm_nt", TORCH_BOX(&seekernel::cpu::bmm_nt));
  m.impl("grouped_gemm_nt", TORCH_BOX(&seekernel::cpu::grouped_gemm_nt));
  m.impl("grouped_gemm_swiglu_nt", TORCH_BOX(&seekernel::cpu::grouped_gemm_swiglu_nt));
  m.impl("router_gemm", TORCH_BOX(&seekernel::cpu::router_gemm));
}
