// All op schemas of seekernel, and nothing else. Every op writes into tensors its caller gives
// ("(a!)") and returns nothing: the typed wrappers in seekernel.ops allocate what was not given.
#include "host/torch.h"

STABLE_TORCH_LIBRARY(seekernel, m) {
  // quantise
  m.def("quantize_fp8_1x128(Tensor x, Tensor(a!) q, Tensor(b!) scale) -> ()");
  m.def("quantize_fp8_128x128(Tensor w, Tensor(a!) q, Tensor(b!) scale) -> ()");
  m.def("dequantize_fp8_128x128(Tensor q, Tensor scale, Tensor(a!) out) -> ()");
  m.def("quantize_int4_g128(Tensor w, Tensor(a!) q, Tensor(b!) scale) -> ()");

  // gemm: fp8_* take float8_e4m3fn weights with 128x128 scales; the others bfloat16 or float32
  // weights
  m.def("fp8_gemm_nt(Tensor a, Tensor? a_scale, Tensor b, Tensor b_scale, Tensor(a!) out) -> ()");
  m.def("fp8_bmm_nt(Tensor a, Tensor? a_scale, Tensor b, Tensor b_scale, Tensor(a!) out) -> ()");
  m.def(
      "fp8_grouped_gemm_nt(Tensor a, Tensor? a_scale, Tensor b, Tensor b_scale, Tensor offsets, "
      "Tensor(a!) out, str layout=\"offsets\", Tensor? tile_map=None, Tensor? num_tiles=None, "
      "Tensor? row_weight=None, int expected_m=0) -> ()");
  m.def(
      "fp8_grouped_gemm_swiglu_nt(Tensor a, Tensor? a_scale, Tensor b, Tensor b_scale, "
      "Tensor offsets, Tensor? row_token, Tensor(a!) out, Tensor(b!)? out_scale=None, "
      "Tensor? tile_map=None, Tensor? num_tiles=None, int expected_m=0) -> ()");
  m.def(
      "w4a8_grouped_gemm_nt(Tensor a, Tensor? a_scale, Tensor b, Tensor b_scale, Tensor offsets, "
      "Tensor(a!) out) -> ()");
  m.def("bmm_nt(Tensor a, Tensor b, Tensor(a!) out) -> ()");
  m.def("gemm_nt(Tensor a, Tensor b, Tensor(a!) out) -> ()");
  m.def("grouped_gemm_nt(Tensor a, Tensor b, Tensor offsets, Tensor(a!) out) -> ()");
  m.def(
      "grouped_gemm_swiglu_nt(Tensor a, Tensor b, Tensor offsets, Tensor? row_token, "
      "Tensor(a!) out) -> ()");
  m.def("router_gemm(Tensor x, Tensor weight, Tensor(a!) out) -> ()");

  // attention
  m.def(
      "mla_prepare(Tensor qkv_a, Tensor? q_norm_weight, Tensor kv_norm_weight, Tensor positions, "
      "Tensor cos_sin, Tensor slots, float eps, Tensor(a!)? q_latent, Tensor(b!) kv_cache, "
      "Tensor? kv_scale=None) -> ()");
  m.def("rope_interleaved(Tensor(a!) x, Tensor positions, Tensor cos_sin) -> ()");
  m.def(
      "mla_decode(Tensor q, Tensor kv_cache, Tensor block_table, Tensor seq_lens, "
      "Tensor cu_seqlens_q, float softmax_scale, bool causal, int d_v, Tensor(a!) out, "
      "Tensor(b!) lse, Tensor? kv_scale=None, Tensor? parts=None, Tensor? items=None, "
      "Tensor(c!)? partial_out=None, Tensor(d!)? partial_lse=None, int split_tokens=0) -> ()");
  m.def(
      "mla_decode_metadata(Tensor seq_lens, Tensor cu_seqlens_q, int h_q, int split_tokens, "
      "Tensor(a!) parts, Tensor(b!) items) -> ()");
  m.def(
      "mla_prefill(Tensor q, Tensor kv, Tensor k_pe, Tensor cu_seqlens_q, Tensor cu_seqlens_kv, "
      "float softmax_scale, bool causal, Tensor(a!) out, Tensor(b!) lse, Tensor? "
      "previous_out=None, "
      "Tensor? previous_lse=None) -> ()");
  m.def(
      "merge_attention_states(Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b, "
      "Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def(
      "mla_gather_latent(Tensor kv_cache, Tensor block_table, Tensor cu_seqlens_kv, "
      "Tensor(a!) latent, Tensor(b!) k_pe, Tensor? kv_scale=None) -> ()");

  // moe
  m.def(
      "moe_gate(Tensor logits, Tensor? bias, int n_group, int topk_group, str scoring_func, "
      "bool norm_topk_prob, float routed_scaling_factor, Tensor(a!) weights, Tensor(b!) ids, "
      "Tensor(c!)? error=None, int num_shared=0) -> ()");
  m.def(
      "moe_plan(Tensor ids, int first_expert, Tensor(a!) offsets, Tensor(b!) row_token, "
      "Tensor(c!) token_row, Tensor? replicas=None, int block_rows=64, Tensor(d!)? tiles=None, "
      "Tensor(e!)? num_tiles=None, Tensor(f!)? loads=None) -> ()");
  m.def(
      "moe_route(Tensor x, Tensor weight, Tensor? bias, int n_group, int topk_group, "
      "str scoring_func, bool norm_topk_prob, float routed_scaling_factor, int first_expert, "
      "Tensor(a!) logits, Tensor(b!) weights, Tensor(c!) ids, Tensor(d!) offsets, "
      "Tensor(e!) row_token, Tensor(f!) token_row, Tensor? replicas=None, int block_rows=64, "
      "Tensor(g!)? tiles=None, Tensor(h!)? num_tiles=None, Tensor(i!)? loads=None, "
      "Tensor(j!)? error=None, int num_shared=0, Tensor(k!)? counter=None) -> ()");
  m.def(
      "moe_finalize(Tensor y, Tensor token_row, Tensor weights, Tensor? shared, Tensor(a!)? out, "
      "Tensor(b!)? residual=None, Tensor? norm_weight=None, float eps=1e-06, "
      "Tensor(c!)? normed=None, Tensor(d!)? q=None, Tensor(e!)? scale=None) -> ()");
  m.def(
      "moe_permute_fp8(Tensor q, Tensor scale, Tensor row_token, Tensor(a!) q_out, "
      "Tensor(b!) scale_out) -> ()");

  // norms and activations
  m.def("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!) out) -> ()");
  m.def(
      "add_rms_norm(Tensor x, Tensor(a!) residual, Tensor weight, float eps, Tensor(b!) out) "
      "-> ()");
  m.def(
      "add_rms_norm_quantize(Tensor? x, Tensor(a!) residual, Tensor weight, float eps, "
      "Tensor(b!)? out, Tensor(c!)? q, Tensor(d!)? scale, Tensor? token_ids=None, "
      "Tensor? embedding=None) -> ()");
  m.def("silu_mul(Tensor x, Tensor(a!) out) -> ()");
  m.def("silu_mul_quantize(Tensor x, Tensor(a!) q, Tensor(b!) scale) -> ()");

  // sampling
  m.def(
      "sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, "
      "Tensor seeds, Tensor offsets, Tensor? repetition, Tensor? presence, Tensor? frequency, "
      "Tensor? token_counts, Tensor? slots, Tensor? extra_ids, Tensor? bias_ids, Tensor? bias, "
      "Tensor? mask, Tensor(a!) ids, Tensor(b!) status, Tensor(c!)? probs) -> ()");
  m.def(
      "token_logprobs(Tensor logits, Tensor ids, Tensor(a!) logprobs, Tensor(b!) ranks, "
      "Tensor(c!) top_ids, Tensor(d!) top_logprobs) -> ()");
  m.def("add_token_counts(Tensor(a!) token_counts, Tensor slots, Tensor ids) -> ()");
  m.def(
      "mtp_verify_strict(Tensor target_ids, Tensor draft_ids, Tensor(a!) out_ids, "
      "Tensor(b!) num_out) -> ()");
  m.def(
      "mtp_verify_relaxed(Tensor top_ids, Tensor top_logprobs, Tensor draft_ids, Tensor slots, "
      "float relaxed_delta, int begin_thinking_id, int end_thinking_id, Tensor(a!) slot_delta, "
      "Tensor(b!) out_ids, Tensor(c!) num_out) -> ()");
  m.def(
      "mtp_verify_rejection(Tensor target_probs, Tensor? draft_probs, Tensor draft_ids, "
      "Tensor seeds, Tensor offsets, Tensor(a!) out_ids, Tensor(b!) num_out) -> ()");
}
