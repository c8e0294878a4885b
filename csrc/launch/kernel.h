// Kernels as the launchers see them: a family, the values it was compiled for, a handle to launch.
//
// Plain C++: the same launchers serve kernels compiled at run time (csrc/jit) and at build time
// (csrc/host); the two differ in their Finder.
#pragma once

#include <array>
#include <cstdint>

#include "driver/driver.h"

namespace seekernel::launch {

// A kernel family and the template arguments of its configuration, in order.
struct KernelKey {
  const char* family = "";
  std::array<int, 12> parameters = {};
  int num_parameters = 0;

  bool operator==(const KernelKey& other) const;
};

struct KeyHash {
  size_t operator()(const KernelKey& key) const;
};

struct KernelTraits {
  unsigned num_threads = 0;
  unsigned max_shared_bytes = 0;  // dynamic; what a launch asks for may depend on its sizes
  std::array<unsigned, 3> cluster = {1, 1, 1};
  bool pdl = false;  // may start while the kernel before it still runs
};

// A loaded kernel; it does not own its code. Attributes are set here, once, for every device.
class Kernel {
 public:
  Kernel() = default;
  // Throws std::runtime_error with the driver's error.
  Kernel(cu::CUkernel handle, const KernelTraits& traits);

  // `parameters` points to one pointer per kernel parameter.
  void launch(std::array<unsigned, 3> grid, unsigned shared_bytes, uintptr_t stream,
              void** parameters) const;

  const KernelTraits& traits() const { return traits_; }
  int num_registers() const;

 private:
  KernelTraits traits_;
  cu::CUkernel handle_ = nullptr;
  cu::LaunchAttribute attributes_[2] = {};
  unsigned num_attributes_ = 0;
};

// The kernel of a key, loaded with `traits` if it was not yet. Throws where there is none.
using Finder = const Kernel& (*)(const KernelKey& key, const KernelTraits& traits);

// SMs of a device.
int num_sms(int device);

}  // namespace seekernel::launch
