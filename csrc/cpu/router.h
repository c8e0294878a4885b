// The router GEMM for the op of its own and for moe_route.
#pragma once

#include "host/torch.h"

namespace seekernel::cpu {

void router_gemm(const Tensor& x, const Tensor& weight, const Tensor& out);

}  // namespace seekernel::cpu
