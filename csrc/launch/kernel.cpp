#include "launch/kernel.h"

#include <cstring>
#include <functional>
#include <string_view>

namespace seekernel::launch {

using cu::check;
using cu::driver;

bool KernelKey::operator==(const KernelKey& other) const {
  return num_parameters == other.num_parameters && parameters == other.parameters &&
         std::strcmp(family, other.family) == 0;
}

size_t KeyHash::operator()(const KernelKey& key) const {
  uint64_t hash = std::hash<std::string_view>{}(key.family);
  for (int i = 0; i < key.num_parameters; ++i) {
    hash = (hash ^ static_cast<uint32_t>(key.parameters[i])) * 0xD6E8FEB86659FD93;
    hash ^= hash >> 32;
  }
  return hash;
}

Kernel::Kernel(cu::CUkernel handle, const KernelTraits& traits) : traits_(traits), handle_(handle) {
  constexpr unsigned kDefaultSharedBytes = 48 * 1024;
  int num_devices = 0;
  check(driver().DeviceGetCount(&num_devices), "cuDeviceGetCount");
  for (int device = 0; traits.max_shared_bytes > kDefaultSharedBytes && device < num_devices;
       ++device) {
    check(driver().KernelSetAttribute(cu::kMaxDynamicSharedBytes,
                                      static_cast<int>(traits.max_shared_bytes), handle, device),
          "cuKernelSetAttribute");
  }
  if (traits.cluster != std::array<unsigned, 3>{1, 1, 1}) {
    cu::LaunchAttribute& attribute = attributes_[num_attributes_++];
    attribute.id = cu::kClusterDimension;
    attribute.value.cluster = {traits.cluster[0], traits.cluster[1], traits.cluster[2]};
  }
  if (traits.pdl) {
    cu::LaunchAttribute& attribute = attributes_[num_attributes_++];
    attribute.id = cu::kProgrammaticStreamSerialization;
    attribute.value.programmatic_serialization = 1;
  }
}

void Kernel::launch(std::array<unsigned, 3> grid, unsigned shared_bytes, uintptr_t stream,
                    void** parameters) const {
  cu::LaunchConfig config{};
  for (int i = 0; i < 3; ++i) config.grid[i] = grid[i];
  config.block[0] = traits_.num_threads;
  config.block[1] = config.block[2] = 1;
  config.shared_bytes = shared_bytes;
  config.stream = reinterpret_cast<cu::CUstream>(stream);
  config.attributes = const_cast<cu::LaunchAttribute*>(attributes_);
  config.num_attributes = num_attributes_;
  check(driver().LaunchKernelEx(&config, handle_, parameters, nullptr), "cuLaunchKernelEx");
}

int Kernel::num_registers() const {
  int value = 0;
  check(driver().KernelGetAttribute(&value, cu::kNumRegisters, handle_, 0), "cuKernelGetAttribute");
  return value;
}

int num_sms(int device) {
  constexpr int kMultiprocessorCount = 16;  // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
  int count = 0;
  check(driver().DeviceGetAttribute(&count, kMultiprocessorCount, device), "cuDeviceGetAttribute");
  return count;
}

}  // namespace seekernel::launch
