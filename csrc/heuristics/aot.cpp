#include "heuristics/aot.h"

#include <cstdlib>
#include <limits>
#include <stdexcept>

namespace seekernel::heuristics {

const std::vector<GemmConfig>& aot_configs() {
  static const std::vector<GemmConfig> configs = {
#define SEEKERNEL_AOT_FP8_GEMM(block_m, block_n, num_stages) {false, block_m, block_n, num_stages},
#include "heuristics/aot_gemm.inc"
#undef SEEKERNEL_AOT_FP8_GEMM
  };
  return configs;
}

GemmConfig nearest_aot(const GemmConfig& wanted, const GemmShape& shape, const Gpu& gpu) {
  const GemmConfig* best = nullptr;
  int64_t best_distance = std::numeric_limits<int64_t>::max();
  for (const GemmConfig& config : aot_configs()) {
    if (!fits(config, shape, gpu)) continue;
    const int64_t distance = 1000 * (std::abs(config.block_m - wanted.block_m) +
                                     std::abs(config.block_n - wanted.block_n)) +
                             std::abs(config.num_stages - wanted.num_stages);
    if (distance < best_distance) best = &config, best_distance = distance;
  }
  if (best == nullptr) {
    throw std::invalid_argument("gemm config: no kernel compiled at build time fits k=" +
                                std::to_string(shape.k));
  }
  return *best;
}

}  // namespace seekernel::heuristics
