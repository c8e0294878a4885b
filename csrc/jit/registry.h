// Kernels by family and compile-time parameters. A missing one is asked for once, from Python.
#pragma once

#include <functional>
#include <string>

#include "jit/kernel.h"

namespace seekernel::jit {

struct Cubin {
  std::string bytes;
  std::string symbol;
};

// Compiles, or finds in the cache on disk; may take a second.
using Resolver = std::function<Cubin(const KernelKey&)>;

void set_resolver(Resolver resolver);
bool has_resolver();

// The loaded kernel, a launch::Finder; `traits` are taken where it is not loaded yet. Call with the
// GIL held. Throws std::runtime_error, or what the resolver throws.
const Kernel& kernel(const KernelKey& key, const KernelTraits& traits);

size_t num_kernels();

// Unloads everything; no kernel may be in flight.
void clear_kernels();

}  // namespace seekernel::jit
