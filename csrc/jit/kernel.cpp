#include "jit/kernel.h"

namespace seekernel::jit {
namespace {

// CU_DEVICE_ATTRIBUTE_*
constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;

}  // namespace

LoadedKernel::LoadedKernel(std::string_view cubin, const std::string& symbol,
                           const KernelTraits& traits) {
  const Driver& cuda = driver();
  check(cuda.LibraryLoadData(&library_, cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
        "cuLibraryLoadData");
  try {
    CUkernel handle = nullptr;
    check(cuda.LibraryGetKernel(&handle, library_, symbol.c_str()), "cuLibraryGetKernel");
    kernel_ = Kernel(handle, traits);
  } catch (...) {
    cuda.LibraryUnload(library_);
    throw;
  }
}

LoadedKernel::~LoadedKernel() {
  if (library_ != nullptr) driver().LibraryUnload(library_);
}

int current_num_sms() {
  CUdevice device = 0;
  check(driver().CtxGetDevice(&device), "cuCtxGetDevice");
  return num_sms(device);
}

bool check_loads(std::string_view cubin, const std::string& symbol) {
  if (!driver_available()) return false;
  int num_devices = 0, major = 0, minor = 0;
  check(driver().DeviceGetCount(&num_devices), "cuDeviceGetCount");
  if (num_devices == 0) return false;
  check(driver().DeviceGetAttribute(&major, kCapabilityMajor, 0), "cuDeviceGetAttribute");
  check(driver().DeviceGetAttribute(&minor, kCapabilityMinor, 0), "cuDeviceGetAttribute");
  if (major != 9 || minor != 0) return false;
  LoadedKernel(cubin, symbol, {});
  return true;
}

}  // namespace seekernel::jit
