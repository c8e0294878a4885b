#include "jit/kernel.h"

namespace seekernel::jit {
namespace {

// CU_DEVICE_ATTRIBUTE_*
constexpr int kMultiprocessorCount = 16;
constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;

}  // namespace

Kernel::Kernel(std::string_view cubin, const std::string& symbol, const KernelTraits& traits)
    : traits_(traits) {
  const Driver& cuda = driver();
  check(cuda.LibraryLoadData(&library_, cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
        "cuLibraryLoadData");
  try {
    check(cuda.LibraryGetKernel(&kernel_, library_, symbol.c_str()), "cuLibraryGetKernel");
    constexpr unsigned kDefaultSharedBytes = 48 * 1024;
    int num_devices = 0;
    check(cuda.DeviceGetCount(&num_devices), "cuDeviceGetCount");
    for (int device = 0; traits.max_shared_bytes > kDefaultSharedBytes && device < num_devices;
         ++device) {
      check(cuda.KernelSetAttribute(kMaxDynamicSharedBytes,
                                    static_cast<int>(traits.max_shared_bytes), kernel_, device),
            "cuKernelSetAttribute");
    }
  } catch (...) {
    cuda.LibraryUnload(library_);
    throw;
  }
  if (traits.cluster != std::array<unsigned, 3>{1, 1, 1}) {
    LaunchAttribute& attribute = attributes_[num_attributes_++];
    attribute.id = kClusterDimension;
    attribute.value.cluster = {traits.cluster[0], traits.cluster[1], traits.cluster[2]};
  }
  if (traits.pdl) {
    LaunchAttribute& attribute = attributes_[num_attributes_++];
    attribute.id = kProgrammaticStreamSerialization;
    attribute.value.programmatic_serialization = 1;
  }
}

Kernel::~Kernel() {
  if (library_ != nullptr) driver().LibraryUnload(library_);
}

void Kernel::launch(std::array<unsigned, 3> grid, unsigned shared_bytes, uintptr_t stream,
                    void** parameters) const {
  LaunchConfig config{};
  for (int i = 0; i < 3; ++i) config.grid[i] = grid[i];
  config.block[0] = traits_.num_threads;
  config.block[1] = config.block[2] = 1;
  config.shared_bytes = shared_bytes;
  config.stream = reinterpret_cast<CUstream>(stream);
  config.attributes = const_cast<LaunchAttribute*>(attributes_);
  config.num_attributes = num_attributes_;
  check(driver().LaunchKernelEx(&config, kernel_, parameters, nullptr), "cuLaunchKernelEx");
}

int Kernel::num_registers() const {
  int value = 0;
  check(driver().KernelGetAttribute(&value, kNumRegisters, kernel_, 0), "cuKernelGetAttribute");
  return value;
}

int current_num_sms() {
  CUdevice device = 0;
  int count = 0;
  check(driver().CtxGetDevice(&device), "cuCtxGetDevice");
  check(driver().DeviceGetAttribute(&count, kMultiprocessorCount, device), "cuDeviceGetAttribute");
  return count;
}

bool check_loads(std::string_view cubin, const std::string& symbol) {
  if (!driver_available()) return false;
  int num_devices = 0, major = 0, minor = 0;
  check(driver().DeviceGetCount(&num_devices), "cuDeviceGetCount");
  if (num_devices == 0) return false;
  check(driver().DeviceGetAttribute(&major, kCapabilityMajor, 0), "cuDeviceGetAttribute");
  check(driver().DeviceGetAttribute(&minor, kCapabilityMinor, 0), "cuDeviceGetAttribute");
  if (major != 9 || minor != 0) return false;
  Kernel(cubin, symbol, {});
  return true;
}

}  // namespace seekernel::jit
