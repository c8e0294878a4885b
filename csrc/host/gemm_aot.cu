// Finds the kernels compiled at build time.
#include <cuda_runtime.h>

#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "host/gemm_aot.h"

namespace seekernel::cuda {
namespace {

using launch::Kernel;
using launch::KernelKey;
using launch::KernelTraits;

std::string describe(const KernelKey& key) {
  std::string text = std::string(key.family) + "<";
  for (int i = 0; i < key.num_parameters; ++i) {
    text += (i ? ", " : "") + std::to_string(key.parameters[i]);
  }
  return text + ">";
}

Kernel load(const KernelKey& key, const KernelTraits& traits) {
  for (const auto part : {aot_dense(), aot_grouped(), aot_swiglu()}) {
    for (const AotKernel& compiled : part) {
      if (!(compiled.key == key)) continue;
      cudaKernel_t kernel = nullptr;
      const cudaError_t status = cudaGetKernel(&kernel, compiled.function);
      if (status != cudaSuccess) {
        throw std::runtime_error(describe(key) + ": cudaGetKernel: " + cudaGetErrorString(status));
      }
      // The runtime's handle is the driver's.
      return Kernel(reinterpret_cast<cu::CUkernel>(kernel), traits);
    }
  }
  throw std::runtime_error(describe(key) + " was not compiled at build time");
}

}  // namespace

const Kernel& aot_kernel(const KernelKey& key, const KernelTraits& traits) {
  static std::mutex mutex;
  static auto& loaded = *new std::unordered_map<KernelKey, Kernel, launch::KeyHash>;
  const std::lock_guard lock(mutex);
  const auto found = loaded.find(key);
  if (found != loaded.end()) return found->second;
  return loaded.emplace(key, load(key, traits)).first->second;
}

}  // namespace seekernel::cuda
