// Instances of the GEMM kernels compiled at build time, and their table.
#include <cuda_runtime.h>

#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "host/gemm_aot.h"
//
#include <seekernel/gemm/sm90_fp8_gemm_nt.cuh>

namespace seekernel::cuda {
namespace {

using launch::Kernel;
using launch::KernelKey;
using launch::KernelTraits;

struct Entry {
  KernelKey key;
  const void* function;
};

template <class Config>
const void* fp8_gemm() {
  return reinterpret_cast<const void*>(&seekernel::sm90_fp8_gemm_nt<Config>);
}

#define SEEKERNEL_AOT_FP8_GEMM(block_m, block_n, num_stages)           \
  Entry{{"sm90_fp8_gemm_nt", {0, 0, block_m, block_n, num_stages}, 5}, \
        fp8_gemm<sm90_fp8_gemm_nt_config<0, 0, block_m, block_n, num_stages>>()},
const Entry kEntries[] = {
#include "heuristics/aot_gemm.inc"
};
#undef SEEKERNEL_AOT_FP8_GEMM

std::string describe(const KernelKey& key) {
  std::string text = std::string(key.family) + "<";
  for (int i = 0; i < key.num_parameters; ++i) {
    text += (i ? ", " : "") + std::to_string(key.parameters[i]);
  }
  return text + ">";
}

Kernel load(const KernelKey& key, const KernelTraits& traits) {
  for (const Entry& entry : kEntries) {
    if (!(entry.key == key)) continue;
    cudaKernel_t kernel = nullptr;
    const cudaError_t status = cudaGetKernel(&kernel, entry.function);
    if (status != cudaSuccess) {
      throw std::runtime_error(describe(key) + ": cudaGetKernel: " + cudaGetErrorString(status));
    }
    // The runtime's handle is the driver's.
    return Kernel(reinterpret_cast<cu::CUkernel>(kernel), traits);
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
