// Loaded kernels: made once, launched often.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <string_view>

#include "driver/driver.h"

namespace seekernel::jit {

using namespace cu;  // the driver is this folder's vocabulary

struct KernelTraits {
  unsigned num_threads = 0;
  unsigned max_shared_bytes = 0;  // dynamic; what a launch asks for may depend on its sizes
  std::array<unsigned, 3> cluster = {1, 1, 1};
  bool pdl = false;  // may start while the kernel before it still runs
};

// A cubin loaded as a CUlibrary, for every context of the process. Attributes are set here, not at
// the launch.
class Kernel {
 public:
  // Throws std::runtime_error with the driver's error.
  Kernel(std::string_view cubin, const std::string& symbol, const KernelTraits& traits);
  ~Kernel();
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  // `parameters` points to one pointer per kernel parameter.
  void launch(std::array<unsigned, 3> grid, unsigned shared_bytes, uintptr_t stream,
              void** parameters) const;

  const KernelTraits& traits() const { return traits_; }
  int num_registers() const;

 private:
  KernelTraits traits_;
  CUlibrary library_ = nullptr;
  CUkernel kernel_ = nullptr;
  LaunchAttribute attributes_[2] = {};
  unsigned num_attributes_ = 0;
};

// Number of SMs of the current context's device.
int current_num_sms();

// Loads and unloads a fresh cubin where that is possible: with a driver and a GPU of sm_90. Returns
// whether it was tried. Throws std::runtime_error with the driver's error.
bool check_loads(std::string_view cubin, const std::string& symbol);

}  // namespace seekernel::jit
