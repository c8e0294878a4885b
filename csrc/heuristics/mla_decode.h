// How a decode step is laid over the SMs: rows per CTA, CTAs side by side, parts. Plain C++, no
// CUDA.
#pragma once

#include <cstdint>

namespace seekernel::heuristics {

struct MlaDecodeShape {
  int cta_rows = 64;   // query rows (token * h_q + head) of a CTA
  int row_blocks = 1;  // CTAs side by side on the same keys: they share reads through L2
  int num_parts = 1;   // of the plan; row_blocks * num_parts CTAs run

  int rows_per_item() const { return cta_rows * row_blocks; }
  bool operator==(const MlaDecodeShape&) const = default;
};

// For s query tokens of b requests, which are taken to have equally many.
MlaDecodeShape mla_decode_shape(int64_t s, int64_t b, int64_t h_q, int num_sms);

// Rows of partial results that any plan may need: of balanced parts, or of pieces of `split_tokens`
// keys where no request has more than `max_tokens`.
int64_t mla_decode_partial_rows(const MlaDecodeShape& shape, int64_t s, int64_t h_q,
                                int64_t split_tokens, int64_t max_tokens);

// What a unit of work costs besides its keys (query in, result out), and the least a part is given,
// in blocks of 64 keys.
constexpr int kMlaDecodeUnitBlocks = 3;
constexpr int kMlaDecodeMinBlocks = 5;

}  // namespace seekernel::heuristics
