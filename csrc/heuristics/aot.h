// Which of the kernels compiled at build time stands in for a configuration of choose().
#pragma once

#include "heuristics/gemm.h"

namespace seekernel::heuristics {

// `wanted` itself if it was compiled, else the compiled configuration nearest to it, of the same
// kind, output and way to its rows. The bits of a result do not depend on the tile, so it gives the
// same ones. Everything that choose() takes has one.
GemmConfig nearest_aot(const GemmConfig& wanted, int64_t k);

const std::vector<GemmConfig>& aot_configs();

}  // namespace seekernel::heuristics
