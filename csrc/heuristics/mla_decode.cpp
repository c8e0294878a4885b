#include "heuristics/mla_decode.h"

#include <algorithm>

namespace seekernel::heuristics {
namespace {

constexpr int64_t kMaxRowBlocks = 8;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

MlaDecodeShape mla_decode_shape(int64_t s, int64_t b, int64_t h_q, int num_sms) {
  const int64_t rows = std::max<int64_t>(1, ceil_div(s, std::max<int64_t>(1, b))) * h_q;
  MlaDecodeShape shape;
  // All rows of a request side by side, or that number of blocks shared out evenly. An item has
  // room for the heads of a token at least: so there are never more items than tokens.
  const int64_t blocks = ceil_div(rows, shape.cta_rows);
  const int64_t passes = ceil_div(blocks, kMaxRowBlocks);
  const int64_t row_blocks = std::min<int64_t>(ceil_div(blocks, passes), std::max(1, num_sms));
  shape.row_blocks = static_cast<int>(row_blocks);
  shape.num_parts = std::max(1, num_sms / shape.row_blocks);
  return shape;
}

int64_t mla_decode_partial_rows(const MlaDecodeShape& shape, int64_t s, int64_t h_q,
                                int64_t split_tokens, int64_t max_tokens) {
  if (split_tokens <= 0) return 2 * shape.num_parts * shape.rows_per_item();
  return s * h_q * ceil_div(max_tokens, split_tokens);
}

}  // namespace seekernel::heuristics
