// Kernels by family and compile-time parameters. A missing one is asked for once, from Python.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "jit/kernel.h"

namespace seekernel::jit {

// A kernel family and the template arguments of its configuration, in order.
struct KernelKey {
  const char* family = "";
  std::array<int, 12> parameters = {};
  int num_parameters = 0;

  bool operator==(const KernelKey& other) const;
};

struct Cubin {
  std::string bytes;
  std::string symbol;
};

// Compiles, or finds in the cache on disk; may take a second.
using Resolver = std::function<Cubin(const KernelKey&)>;

void set_resolver(Resolver resolver);

// The loaded kernel; `traits` are taken where it is not loaded yet. Call with the GIL held. Throws
// std::runtime_error, or what the resolver throws.
const Kernel& kernel(const KernelKey& key, const KernelTraits& traits);

size_t num_kernels();

// Unloads everything; no kernel may be in flight.
void clear_kernels();

}  // namespace seekernel::jit
