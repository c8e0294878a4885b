// The GEMM kernels compiled into this library, as the launchers ask for them.
#pragma once

#include <span>

#include "launch/kernel.h"

namespace seekernel::cuda {

// What was compiled, and the address that the CUDA runtime knows it by.
struct AotKernel {
  launch::KernelKey key;
  const void* function;
};

std::span<const AotKernel> aot_dense();
std::span<const AotKernel> aot_grouped();
std::span<const AotKernel> aot_swiglu();

// A launch::Finder. Throws std::runtime_error naming a kernel that was not compiled.
const launch::Kernel& aot_kernel(const launch::KernelKey& key, const launch::KernelTraits& traits);

}  // namespace seekernel::cuda
