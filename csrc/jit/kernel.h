// Cubins loaded into the driver.
#pragma once

#include <string>
#include <string_view>

#include "launch/kernel.h"

namespace seekernel::jit {

using namespace cu;      // the driver and
using namespace launch;  // the launchers are this folder's vocabulary

// A cubin loaded as a CUlibrary, for every context of the process, and its one kernel.
class LoadedKernel {
 public:
  // Throws std::runtime_error with the driver's error.
  LoadedKernel(std::string_view cubin, const std::string& symbol, const KernelTraits& traits);
  ~LoadedKernel();
  LoadedKernel(const LoadedKernel&) = delete;
  LoadedKernel& operator=(const LoadedKernel&) = delete;

  const Kernel& kernel() const { return kernel_; }

 private:
  CUlibrary library_ = nullptr;
  Kernel kernel_;
};

// Number of SMs of the current context's device.
int current_num_sms();

// Loads and unloads a fresh cubin where that is possible: with a driver and a GPU of sm_90. Returns
// whether it was tried. Throws std::runtime_error with the driver's error.
bool check_loads(std::string_view cubin, const std::string& symbol);

}  // namespace seekernel::jit
