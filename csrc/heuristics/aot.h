// Which of the kernels compiled at build time stands in for a configuration of choose().
#pragma once

#include "heuristics/gemm.h"

namespace seekernel::heuristics {

// `wanted` itself if it was compiled, else the compiled configuration nearest to it that fits: the
// same tile before another one, then the larger ring. Every shape that choose() takes has one.
GemmConfig nearest_aot(const GemmConfig& wanted, const GemmShape& shape, const Gpu& gpu);

const std::vector<GemmConfig>& aot_configs();

}  // namespace seekernel::heuristics
