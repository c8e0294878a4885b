// The GEMM kernels compiled into this library, as the launchers ask for them.
#pragma once

#include "launch/kernel.h"

namespace seekernel::cuda {

// A launch::Finder. Throws std::runtime_error naming a kernel that was not compiled.
const launch::Kernel& aot_kernel(const launch::KernelKey& key, const launch::KernelTraits& traits);

}  // namespace seekernel::cuda
