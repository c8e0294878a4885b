// How CUDA boundaries launch: dynamic shared memory, clusters and programmatic dependent launch in
// one call, and the device's SM count.
//
//   launch({.grid = {m}, .block = {128}, .shared_bytes = n, .pdl = true}, stream, "op", kernel<8>,
//          x, out, ...);
#pragma once

#include <array>
#include <mutex>
#include <string>
#include <unordered_set>

#include "host/cuda.h"

namespace seekernel::cuda {

struct LaunchShape {
  dim3 grid = {1};
  dim3 block = {1};
  size_t shared_bytes = 0;
  dim3 cluster = {1};
  bool pdl = false;  // may start before the kernel ahead of it on the stream has finished
};

// SMs of a device, asked for once.
inline int num_sms(int32_t device) {
  static const auto counts = [] {
    std::array<int, 64> all{};
    int num_devices = 0;
    check(cudaGetDeviceCount(&num_devices), "cudaGetDeviceCount");
    for (int i = 0; i < num_devices && i < 64; ++i) {
      check(cudaDeviceGetAttribute(&all[i], cudaDevAttrMultiProcessorCount, i),
            "cudaDeviceGetAttribute");
    }
    return all;
  }();
  return counts.at(static_cast<size_t>(device));
}

// Lets a kernel use more than 48 KiB of dynamic shared memory, once per kernel and device.
inline void allow_shared_bytes(const void* kernel, size_t bytes, const char* op) {
  constexpr size_t kDefaultBytes = 48 * 1024;
  if (bytes <= kDefaultBytes) return;
  static std::mutex mutex;
  static std::unordered_set<std::string> done;
  int device = 0;
  check(cudaGetDevice(&device), op);
  const std::string key = std::to_string(reinterpret_cast<uintptr_t>(kernel)) + "/" +
                          std::to_string(device) + "/" + std::to_string(bytes);
  const std::lock_guard lock(mutex);
  if (!done.insert(key).second) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        op);
}

// Launches on the current device. Throws with the op's name if the launch was refused; does not
// wait.
template <class... Parameters, class... Arguments>
void launch(const LaunchShape& shape, cudaStream_t stream, const char* op,
            void (*kernel)(Parameters...), Arguments&&... arguments) {
  allow_shared_bytes(reinterpret_cast<const void*>(kernel), shape.shared_bytes, op);
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (shape.cluster.x * shape.cluster.y * shape.cluster.z > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {shape.cluster.x, shape.cluster.y, shape.cluster.z};
  }
  if (shape.pdl) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), op);
}

}  // namespace seekernel::cuda
