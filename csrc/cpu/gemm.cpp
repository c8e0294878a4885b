// CPU boundary of the GEMM ops: checks, then tasks (rows of a group x slab of weight rows) handed
// out to threads. One engine serves them all; they differ in how rows fall into groups.
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

// How rows fall into groups: equal runs (rows_per_group), or at offsets when those are given.
struct Groups {
  int64_t num_groups;
  int64_t rows_per_group;
  const int32_t* offsets;
  int64_t begin(int64_t group) const {
    return offsets != nullptr ? offsets[group] : group * rows_per_group;
  }
};

void run_pass(GemmArgs& args, const std::vector<Segment>& segments, int64_t row_begin,
              int64_t row_end) {
  const GemmKernels& gemm = kernels().gemm;
  const int64_t rows = row_end - row_begin;
  args.packed_begin = row_begin;
  args.packed = packed_buffer.get(rows * args.stride_packed);
  const bool is_small = rows * args.stride_packed <= kInlineProducts;
  parallel_chunks(rows, is_small ? rows : kRowsPerPackChunk, [&](int64_t begin, int64_t end) {
    gemm.pack(args, row_begin + begin, row_begin + end);
  });

  const int64_t num_segments = static_cast<int64_t>(segments.size());
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

void run(GemmArgs& args, const Groups& groups) {
  if (args.n == 0) return;
  thread_local std::vector<Segment> segments;
  const int64_t max_rows = kernels().gemm.max_rows;
  args.stride_packed = gemm_packed_stride(args.k);
  const int64_t rows_per_pass =
      args.stride_packed > 0 ? ceil_div(kMaxPackedFloats, args.stride_packed) : kMaxPackedFloats;
  const int64_t num_rows = groups.begin(groups.num_groups);
  int64_t group = 0;
  for (int64_t pass = 0; pass < num_rows; pass += rows_per_pass) {
    const int64_t pass_end = pass + rows_per_pass < num_rows ? pass + rows_per_pass : num_rows;
    segments.clear();
    for (int64_t row = pass; row < pass_end;) {
      while (groups.begin(group + 1) <= row) ++group;
      const int64_t group_end = groups.begin(group + 1);
      int64_t end = row + max_rows < group_end ? row + max_rows : group_end;
      if (end > pass_end) end = pass_end;
      segments.push_back({group, row, end});
      row = end;
    }
    run_pass(args, segments, pass, pass_end);
  }
}

// Activations [m, k] with their scales, of the ops that take float8_e4m3fn ones.
void take_activations(const Checker& check, const Tensor& a, const OptionalTensor& a_scale, Dim& m,
                      Dim& k, GemmArgs& args) {
  check("a", a).shape({m, k}).dtype(kActivations).last_dim_contiguous();
  const bool is_fp8 = a.scalar_type() == ScalarType::Float8_e4m3fn;
  check.require(is_fp8 == a_scale.has_value(),
                std::string("a_scale: expected ") +
                    (is_fp8 ? "a tensor as a is float8_e4m3fn, got None"
                            : "None as a is not float8_e4m3fn, got a tensor"));
  args.a_dtype = dtype_of(a);
  args.a = a.const_data_ptr();
  args.a_rows = {.rows_per_group = INT64_MAX, .stride_g = 0, .stride_m = a.stride(0)};
  if (!is_fp8) return;
  check("a_scale", *a_scale)
      .shape({ceil_div(k, 128), ceil_div(m, 4) * 4})
      .dtype({ScalarType::Float})
      .last_dim_contiguous();
  args.a_scale = static_cast<const float*>(a_scale->const_data_ptr());
  args.stride_a_scale = a_scale->stride(0);
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
Groups take_offsets(const Checker& check, const Tensor& offsets, int64_t g, int64_t rows) {
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
  return {.num_groups = g, .rows_per_group = 0, .offsets = values};
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
  take_activations(check, a, a_scale, m, k, args);
  check("out", out).shape({m, n}).dtype(out_dtypes).last_dim_contiguous();
  take_out(out, args, n, k);
  take_weights(check, b_name, b, b_scale, nullptr, n, k, args);
  run(args, {.num_groups = 1, .rows_per_group = m, .offsets = nullptr});
}

void bmm(const char* op, const Tensor& a, const Tensor& b, const Tensor* b_scale,
         const Tensor& out) {
  Checker check(op);
  Dim g("g"), m("m"), n("n"), k("k");
  GemmArgs args{};
  check("a", a).shape({g, m, k}).dtype(kWide).last_dim_contiguous();
  check("out", out).shape({g, m, n}).dtype(kWide).last_dim_contiguous();
  take_out(out, args, n, k);
  take_weights(check, "b", b, b_scale, &g, n, k, args);
  args.a_dtype = dtype_of(a);
  args.a = a.const_data_ptr();
  args.a_rows = {.rows_per_group = m, .stride_g = a.stride(0), .stride_m = a.stride(1)};
  args.out_rows = {.rows_per_group = m, .stride_g = out.stride(0), .stride_m = out.stride(1)};
  run(args, {.num_groups = g, .rows_per_group = m, .offsets = nullptr});
}

void grouped_gemm(const char* op, bool swiglu, const Tensor& a, const OptionalTensor& a_scale,
                  const Tensor& b, const Tensor* b_scale, const Tensor& offsets,
                  const OptionalTensor& row_token, const Tensor& out) {
  Checker check(op);
  Dim m(row_token ? "m" : "rows"), rows("rows"), g("g"), n("n"), k("k");
  GemmArgs args{};
  args.swiglu = swiglu;
  if (b_scale == nullptr) check("a", a).dtype(kWide);
  take_activations(check, a, a_scale, m, k, args);
  if (!row_token) rows.bind(m);
  check("out", out).shape({rows, n}).dtype(kWide).last_dim_contiguous();
  take_out(out, args, n, k);
  take_weights(check, "b", b, b_scale, &g, swiglu ? 2 * n : n, k, args);
  const Groups groups = take_offsets(check, offsets, g, rows);
  if (row_token) take_row_token(check, *row_token, rows, groups.begin(g), m, args);
  run(args, groups);
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
  Checker("fp8_bmm_nt").require(!a_scale, "a_scale: expected None on the CPU, got a tensor");
  bmm("fp8_bmm_nt", a, b, &b_scale, out);
}

void bmm_nt(const Tensor& a, const Tensor& b, const Tensor& out) {
  bmm("bmm_nt", a, b, nullptr, out);
}

void fp8_grouped_gemm_nt(const Tensor& a, OptionalTensor a_scale, const Tensor& b,
                         const Tensor& b_scale, const Tensor& offsets, const Tensor& out) {
  grouped_gemm("fp8_grouped_gemm_nt", false, a, a_scale, b, &b_scale, offsets, std::nullopt, out);
}

void fp8_grouped_gemm_swiglu_nt(const Tensor& a, OptionalTensor a_scale, const Tensor& b,
                                const Tensor& b_scale, const Tensor& offsets,
                                OptionalTensor row_token, const Tensor& out) {
  grouped_gemm("fp8_grouped_gemm_swiglu_nt", true, a, a_scale, b, &b_scale, offsets, row_token,
               out);
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
  m.impl("gemm_nt", TORCH_BOX(&seekernel::cpu::gemm_nt));
  m.impl("bmm_nt", TORCH_BOX(&seekernel::cpu::bmm_nt));
  m.impl("grouped_gemm_nt", TORCH_BOX(&seekernel::cpu::grouped_gemm_nt));
  m.impl("grouped_gemm_swiglu_nt", TORCH_BOX(&seekernel::cpu::grouped_gemm_swiglu_nt));
  m.impl("router_gemm", TORCH_BOX(&seekernel::cpu::router_gemm));
}
