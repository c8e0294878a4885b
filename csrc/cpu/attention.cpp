// CPU boundary of mla_decode and mla_prefill: checks, then blocks of rows shared over threads.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/paged.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "host/check.h"

namespace seekernel::cpu {
namespace {

constexpr auto kActivations = {ScalarType::Float, ScalarType::BFloat16};
constexpr float kLog2E = 1.44269504f;

// Keys of a token are split by their number alone, so that its bits depend on nothing else: into
// a power of two of chunks of about 96 to 192 keys (a merge then costs a few percent), at most 32.
constexpr int64_t kMaxKeysPerChunk = 192;
constexpr int64_t kMaxChunks = 32;
constexpr int64_t kMaxHeadsPerBlock = 128;

int64_t keys_per_chunk(int64_t num_keys) {
  int64_t num_chunks = 1;
  while (num_chunks < kMaxChunks && num_chunks * kMaxKeysPerChunk < num_keys) num_chunks *= 2;
  return std::max<int64_t>(1, (num_keys + num_chunks - 1) / num_chunks);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One block of heads of one token, and where its partial results begin.
struct DecodeBlock {
  MlaDecodeToken token;
  int64_t head_begin;
  int64_t head_end;
  int64_t keys_per_chunk;
  int64_t num_chunks;
  int64_t first_chunk;
};

void decode_chunk(const MlaDecodeArgs& args, const DecodeBlock& block, int64_t chunk,
                  float* scratch, float* partial) {
  const int64_t begin = chunk * block.keys_per_chunk;
  const int64_t end = std::min(begin + block.keys_per_chunk, block.token.num_keys);
  kernels().attention.mla_decode_chunk(args, block.token, block.head_begin, block.head_end, begin,
                                       end, scratch, partial);
}

int64_t heads_per_block(const std::vector<DecodeBlock>& blocks) {
  return blocks.empty() ? 0 : blocks[0].head_end - blocks[0].head_begin;  // the last may have fewer
}

int64_t partial_floats(const MlaDecodeArgs& args, const std::vector<DecodeBlock>& blocks) {
  const AttentionKernels& attention = kernels().attention;
  return ceil_div(heads_per_block(blocks), attention.rows_per_panel) *
         attention.partial_size(args.d_v);
}

// Many blocks: each is one thread's, its chunks are merged as they come.
void run_decode_blocks(const MlaDecodeArgs& args, const std::vector<DecodeBlock>& blocks) {
  const AttentionKernels& attention = kernels().attention;
  const int64_t partial_size = partial_floats(args, blocks);
  const int64_t scratch_size = attention.decode_scratch_size(args, heads_per_block(blocks));
  parallel_chunks(static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    float* total = thread_scratch(2 * partial_size + scratch_size);
    float* partial = total + partial_size;
    float* scratch = partial + partial_size;
    for (int64_t i = begin; i < end; ++i) {
      const DecodeBlock& block = blocks[i];
      decode_chunk(args, block, 0, scratch, total);
      for (int64_t chunk = 1; chunk < block.num_chunks; ++chunk) {
        decode_chunk(args, block, chunk, scratch, partial);
        attention.mla_decode_merge(args, block.head_end - block.head_begin, partial, total);
      }
      attention.mla_decode_finish(args, block.token, block.head_begin, block.head_end, total);
    }
  });
}

// Few blocks: their chunks are shared over threads, then merged in the same order: the same bits.
void run_decode_chunks(const MlaDecodeArgs& args, const std::vector<DecodeBlock>& blocks,
                       int64_t num_chunks) {
  const AttentionKernels& attention = kernels().attention;
  const int64_t partial_size = partial_floats(args, blocks);
  const int64_t scratch_size = attention.decode_scratch_size(args, heads_per_block(blocks));
  const std::unique_ptr<float[]> partials(new float[num_chunks * partial_size]);
  parallel_chunks(num_chunks, 1, [&](int64_t begin, int64_t end) {
    float* scratch = thread_scratch(scratch_size);
    for (int64_t i = begin; i < end; ++i) {
      const auto next = std::upper_bound(
          blocks.begin(), blocks.end(), i,
          [](int64_t index, const DecodeBlock& block) { return index < block.first_chunk; });
      const DecodeBlock& block = *(next - 1);
      decode_chunk(args, block, i - block.first_chunk, scratch, &partials[i * partial_size]);
    }
  });
  parallel_chunks(static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const DecodeBlock& block = blocks[i];
      float* total = &partials[block.first_chunk * partial_size];
      for (int64_t chunk = 1; chunk < block.num_chunks; ++chunk) {
        attention.mla_decode_merge(args, block.head_end - block.head_begin,
                                   total + chunk * partial_size, total);
      }
      attention.mla_decode_finish(args, block.token, block.head_begin, block.head_end, total);
    }
  });
}

void mla_decode(const Tensor& q, const Tensor& kv_cache, const Tensor& block_table,
                const Tensor& seq_lens, const Tensor& cu_seqlens_q, double softmax_scale,
                bool causal, int64_t d_v, const Tensor& out, const Tensor& lse,
                const OptionalTensor& kv_scale, const OptionalTensor& /*parts*/,
                const OptionalTensor& /*items*/, const OptionalTensor& /*partial_out*/,
                const OptionalTensor& /*partial_lse*/, int64_t /*split_tokens*/) {
  Checker check("mla_decode");
  Dim s("s"), b("b"), h_q("h_q"), d_qk("d_qk"), num_pages("num_pages"), page_size("page_size");
  Dim max_pages("max_pages");
  check("q", q).shape({s, h_q, d_qk}).dtype(kActivations).last_dim_contiguous();
  check.require(d_v >= 0 && d_v <= d_qk.value(), "d_v: expected a value in [0, " + d_qk.describe() +
                                                     "], got " + std::to_string(d_v));
  const PagedCache cache =
      check_paged_cache(check, kv_cache, kv_scale, num_pages, page_size, d_v, d_qk.value() - d_v);
  check("seq_lens", seq_lens).shape({b}).dtype({ScalarType::Int}).contiguous();
  check("block_table", block_table)
      .shape({b, max_pages})
      .dtype({ScalarType::Int})
      .last_dim_contiguous();
  const int32_t* offsets = check_offsets(check, "cu_seqlens_q", cu_seqlens_q, b, s);
  check("out", out).shape({s, h_q, d_v}).same_dtype("q", q).last_dim_contiguous();
  check("lse", lse).shape({s, h_q}).dtype({ScalarType::Float}).contiguous();
  const auto* lengths = static_cast<const int32_t*>(seq_lens.const_data_ptr());
  for (int64_t i = 0; i < b; ++i) {
    check.require(lengths[i] >= 0, "seq_lens[" + std::to_string(i) +
                                       "]: expected a length >= 0, got " +
                                       std::to_string(lengths[i]));
    check_pages(check, block_table, i, lengths[i], page_size, num_pages);
  }
  const MlaDecodeArgs args{.q_dtype = dtype_of(q),
                           .out_dtype = dtype_of(out),
                           .h_q = h_q,
                           .d_qk = d_qk,
                           .d_v = d_v,
                           .stride_q_s = q.stride(0),
                           .stride_q_h = q.stride(1),
                           .stride_out_s = out.stride(0),
                           .stride_out_h = out.stride(1),
                           .q = q.const_data_ptr(),
                           .cache = cache,
                           .scale = static_cast<float>(softmax_scale) * kLog2E,
                           .out = out.mutable_data_ptr(),
                           .lse = static_cast<float*>(lse.mutable_data_ptr())};
  const auto* table = static_cast<const int32_t*>(block_table.const_data_ptr());
  const auto num_threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t panel = kernels().attention.rows_per_panel;
  // Enough tokens and chunks for the threads: a thread takes all heads, so keys are read once.
  int64_t num_items = 0;
  for (int64_t i = 0; i < b; ++i) {
    const int64_t chunks = ceil_div(lengths[i], keys_per_chunk(lengths[i]));
    num_items += (offsets[i + 1] - offsets[i]) * std::max<int64_t>(1, chunks);
  }
  const int64_t heads = num_items >= 4 * num_threads ? kMaxHeadsPerBlock : panel;
  std::vector<DecodeBlock> blocks;
  int64_t num_chunks = 0;
  for (int64_t i = 0; i < b; ++i) {
    for (int64_t row = offsets[i]; row < offsets[i + 1]; ++row) {
      const int64_t unseen = causal ? offsets[i + 1] - 1 - row : 0;
      const MlaDecodeToken token{.row = row,
                                 .pages = table + i * block_table.stride(0),
                                 .num_keys = std::max<int64_t>(0, lengths[i] - unseen)};
      const int64_t chunk = keys_per_chunk(token.num_keys);
      for (int64_t head = 0; head < h_q; head += heads) {
        blocks.push_back({.token = token,
                          .head_begin = head,
                          .head_end = std::min<int64_t>(head + heads, h_q),
                          .keys_per_chunk = chunk,
                          .num_chunks = std::max<int64_t>(1, ceil_div(token.num_keys, chunk)),
                          .first_chunk = num_chunks});
        num_chunks += blocks.back().num_chunks;
      }
    }
  }
  const auto num_blocks = static_cast<int64_t>(blocks.size());
  if (num_threads == 1 || num_blocks >= 4 * num_threads || num_blocks == num_chunks) {
    return run_decode_blocks(args, blocks);
  }
  run_decode_chunks(args, blocks, num_chunks);
}

// There is no plan on the CPU: threads share the work as they come. The tensors are left alone.
void mla_decode_metadata(const Tensor& seq_lens, const Tensor& cu_seqlens_q, int64_t h_q,
                         int64_t /*split_tokens*/, const Tensor& parts, const Tensor& items) {
  const Checker check("mla_decode_metadata");
  Dim b("b"), rows("s + 1"), num_parts("num_sms");
  check("seq_lens", seq_lens).shape({b}).dtype({ScalarType::Int});
  check("cu_seqlens_q", cu_seqlens_q).shape({b.value() + 1}).dtype({ScalarType::Int});
  check("parts", parts).shape({num_parts, 8}).dtype({ScalarType::Int});
  check("items", items).shape({rows, 8}).dtype({ScalarType::Int});
  check.require(h_q >= 1, "h_q: expected at least 1, got " + std::to_string(h_q));
}

// A block of queries of one head of one sequence.
struct PrefillBlock {
  int64_t sequence;
  int64_t head;
  int64_t begin;
  int64_t end;
};

void mla_prefill(const Tensor& q, const Tensor& kv, const Tensor& k_pe, const Tensor& cu_seqlens_q,
                 const Tensor& cu_seqlens_kv, double softmax_scale, bool causal, const Tensor& out,
                 const Tensor& lse, const OptionalTensor& previous_out,
                 const OptionalTensor& previous_lse) {
  Checker check("mla_prefill");
  Dim s_q("s_q"), s_kv("s_kv"), h("h"), d_qk("d_qk"), d_kv("d_nope + d_v"), d_rope("d_rope");
  Dim d_v("d_v"), cu_size("b + 1");
  check("q", q).shape({s_q, h, d_qk}).dtype(kActivations).last_dim_contiguous();
  check("k_pe", k_pe).shape({s_kv, d_rope}).dtype(kActivations).last_dim_contiguous();
  check("out", out).shape({s_q, h, d_v}).last_dim_contiguous();
  if (out.scalar_type() != ScalarType::Float) check("out", out).same_dtype("q", q);
  const int64_t d_nope = d_qk.value() - d_rope.value();
  check.require(d_nope >= 0,
                "k_pe: expected d_rope <= " + d_qk.describe() + ", got " + d_rope.describe());
  check("kv", kv).shape({s_kv, h, d_nope + d_v.value()}).dtype(kActivations).last_dim_contiguous();
  check("lse", lse).shape({s_q, h}).dtype({ScalarType::Float}).contiguous();
  const bool merges = previous_out.has_value();
  check.require(merges == previous_lse.has_value(),
                "expected previous_out and previous_lse together or neither, got one of them");
  if (merges) {
    check("previous_out", *previous_out)
        .shape({s_q, h, d_v})
        .dtype(kActivations)
        .last_dim_contiguous();
    check("previous_lse", *previous_lse).shape({s_q, h}).dtype({ScalarType::Float}).contiguous();
  }
  check("cu_seqlens_q", cu_seqlens_q).shape({cu_size});
  check.require(cu_size.value() > 0, "cu_seqlens_q: expected shape [b + 1], got shape [0]");
  const Dim b("b", cu_size.value() - 1);
  const int32_t* q_offsets = check_offsets(check, "cu_seqlens_q", cu_seqlens_q, b, s_q);
  const int32_t* kv_offsets = check_offsets(check, "cu_seqlens_kv", cu_seqlens_kv, b, s_kv);
  const MlaPrefillArgs args{
      .q_dtype = dtype_of(q),
      .kv_dtype = dtype_of(kv),
      .k_pe_dtype = dtype_of(k_pe),
      .out_dtype = dtype_of(out),
      .causal = causal,
      .d_nope = d_nope,
      .d_rope = d_rope,
      .d_v = d_v,
      .stride_q_s = q.stride(0),
      .stride_q_h = q.stride(1),
      .stride_kv_s = kv.stride(0),
      .stride_kv_h = kv.stride(1),
      .stride_k_pe_s = k_pe.stride(0),
      .stride_out_s = out.stride(0),
      .stride_out_h = out.stride(1),
      .h = h,
      .q = q.const_data_ptr(),
      .kv = kv.const_data_ptr(),
      .k_pe = k_pe.const_data_ptr(),
      .scale = static_cast<float>(softmax_scale) * kLog2E,
      .out = out.mutable_data_ptr(),
      .lse = static_cast<float*>(lse.mutable_data_ptr()),
      .previous_out = merges ? previous_out->const_data_ptr() : nullptr,
      .previous_lse = merges ? static_cast<const float*>(previous_lse->const_data_ptr()) : nullptr,
      .previous_dtype = merges ? dtype_of(*previous_out) : Dtype::kFloat32,
      .stride_previous_s = merges ? previous_out->stride(0) : 0,
      .stride_previous_h = merges ? previous_out->stride(1) : 0};
  const AttentionKernels& attention = kernels().attention;
  const int64_t step = attention.queries_per_block;
  std::vector<PrefillBlock> blocks;
  for (int64_t i = 0; i < b.value(); ++i) {
    const int64_t length = q_offsets[i + 1] - q_offsets[i];
    // Last queries first: under a causal mask they see most, and the small blocks fill the end.
    for (int64_t block = ceil_div(length, step) - 1; block >= 0; --block) {
      for (int64_t head = 0; head < h; ++head) {
        blocks.push_back({i, head, block * step, std::min(length, (block + 1) * step)});
      }
    }
  }
  const int64_t scratch_size = attention.prefill_scratch_size(args);
  parallel_chunks(static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    float* scratch = thread_scratch(scratch_size);
    for (int64_t i = begin; i < end; ++i) {
      const PrefillBlock& block = blocks[i];
      const int64_t r = block.sequence;
      attention.mla_prefill_block(args,
                                  {.q_begin = q_offsets[r],
                                   .s_q = q_offsets[r + 1] - q_offsets[r],
                                   .kv_begin = kv_offsets[r],
                                   .s_kv = kv_offsets[r + 1] - kv_offsets[r]},
                                  block.head, block.begin, block.end, scratch);
    }
  });
}

void merge_attention_states(const Tensor& out_a, const Tensor& lse_a, const Tensor& out_b,
                            const Tensor& lse_b, const Tensor& out, const Tensor& lse) {
  Checker check("merge_attention_states");
  Dim s("s"), h("h"), d_v("d_v");
  check("out", out).shape({s, h, d_v}).dtype(kActivations).last_dim_contiguous();
  check("lse", lse).shape({s, h}).dtype({ScalarType::Float}).contiguous();
  const auto state = [&](const char* name, const Tensor& state_out, const char* lse_name,
                         const Tensor& state_lse) -> AttentionState {
    check(name, state_out).shape({s, h, d_v}).dtype(kActivations).last_dim_contiguous();
    check(lse_name, state_lse).shape({s, h}).dtype({ScalarType::Float}).contiguous();
    return {.dtype = dtype_of(state_out),
            .stride_s = state_out.stride(0),
            .stride_h = state_out.stride(1),
            .out = state_out.const_data_ptr(),
            .lse = static_cast<const float*>(state_lse.const_data_ptr())};
  };
  const MergeStatesArgs args{
      .states = {state("out_a", out_a, "lse_a", lse_a), state("out_b", out_b, "lse_b", lse_b)},
      .h = h,
      .d_v = d_v,
      .out_dtype = dtype_of(out),
      .stride_out_s = out.stride(0),
      .stride_out_h = out.stride(1),
      .out = out.mutable_data_ptr(),
      .lse = static_cast<float*>(lse.mutable_data_ptr())};
  const int64_t rows_per_chunk = std::max<int64_t>(1, 16384 / (d_v + 1));
  parallel_chunks(s * h, rows_per_chunk, [&](int64_t begin, int64_t end) {
    kernels().attention.merge_attention_states(args, begin, end, thread_scratch(d_v));
  });
}

}  // namespace
}  // namespace seekernel::cpu

STABLE_TORCH_LIBRARY_IMPL(seekernel, CPU, m) {
  m.impl("mla_decode", TORCH_BOX(&seekernel::cpu::mla_decode));
  m.impl("mla_decode_metadata", TORCH_BOX(&seekernel::cpu::mla_decode_metadata));
  m.impl("mla_prefill", TORCH_BOX(&seekernel::cpu::mla_prefill));
  m.impl("merge_attention_states", TORCH_BOX(&seekernel::cpu::merge_attention_states));
}
