#include "heuristics/aot.h"

#include <cstdlib>
#include <limits>
#include <stdexcept>

namespace seekernel::heuristics {

const std::vector<GemmConfig>& aot_configs() {
  static const std::vector<GemmConfig> configs = {
#define SEEKERNEL_AOT_FP8_GEMM(block_m, block_n, num_stages, kind, output, multicast, gather) \
  {false,                                                                                     \
   block_m,                                                                                   \
   block_n,                                                                                   \
   num_stages,                                                                                \
   static_cast<GemmMulticast>(multicast),                                                     \
   static_cast<TileKind>(kind),                                                               \
   static_cast<GemmOutput>(output),                                                           \
   gather != 0},
#include "heuristics/aot_gemm.inc"
#undef SEEKERNEL_AOT_FP8_GEMM
  };
  return configs;
}

GemmConfig nearest_aot(const GemmConfig& wanted, int64_t k) {
  const GemmConfig* best = nullptr;
  int best_distance = std::numeric_limits<int>::max();
  for (const GemmConfig& config : aot_configs()) {
    if (config.swap_ab != wanted.swap_ab || config.kind != wanted.kind ||
        config.output != wanted.output || config.gather != wanted.gather ||
        resources(config, k).shared_bytes > Gpu{}.shared_bytes) {
      continue;
    }
    const int distance = 1000 * (std::abs(config.block_m - wanted.block_m) +
                                 std::abs(config.block_n - wanted.block_n)) +
                         100 * (config.multicast != wanted.multicast) +
                         std::abs(config.num_stages - wanted.num_stages);
    if (distance < best_distance) best = &config, best_distance = distance;
  }
  if (best == nullptr) {
    throw std::invalid_argument("gemm config: no kernel compiled at build time for kind " +
                                std::to_string(static_cast<int>(wanted.kind)) + ", output " +
                                std::to_string(static_cast<int>(wanted.output)));
  }
  return *best;
}

}  // namespace seekernel::heuristics
