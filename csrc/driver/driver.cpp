#include "driver/driver.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>
#include <stdexcept>

namespace seekernel::cu {
namespace {

template <typename Function>
void find(void* library, const char* name, Function& target) {
  target = reinterpret_cast<Function>(dlsym(library, name));
  if (target == nullptr) {
    throw std::runtime_error(std::string("CUDA driver: no ") + name +
                             "; a driver of CUDA 12.4 or newer is needed");
  }
}

Driver open_driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error("CUDA driver: libcuda.so.1 cannot be loaded");
  Driver table;
  find(library, "cuInit", table.Init);
  find(library, "cuDriverGetVersion", table.DriverGetVersion);
  find(library, "cuGetErrorName", table.GetErrorName);
  find(library, "cuDeviceGetCount", table.DeviceGetCount);
  find(library, "cuDeviceGetAttribute", table.DeviceGetAttribute);
  find(library, "cuCtxGetDevice", table.CtxGetDevice);
  find(library, "cuLibraryLoadData", table.LibraryLoadData);
  find(library, "cuLibraryUnload", table.LibraryUnload);
  find(library, "cuLibraryGetKernel", table.LibraryGetKernel);
  find(library, "cuKernelGetAttribute", table.KernelGetAttribute);
  find(library, "cuKernelSetAttribute", table.KernelSetAttribute);
  find(library, "cuTensorMapEncodeTiled", table.TensorMapEncodeTiled);
  find(library, "cuLaunchKernelEx", table.LaunchKernelEx);
  const CUresult result = table.Init(0);
  if (result != 0) {
    const char* name = nullptr;
    table.GetErrorName(result, &name);
    throw std::runtime_error(std::string("CUDA driver: cuInit: ") +
                             (name ? name : "unknown error"));
  }
  return table;
}

std::atomic<const Driver*> current{nullptr};

}  // namespace

const Driver& driver() {
  const Driver* table = current.load(std::memory_order_acquire);
  if (table == nullptr) {
    static const Driver machine = open_driver();
    current.store(table = &machine, std::memory_order_release);
  }
  return *table;
}

bool driver_available(std::string* reason) {
  try {
    driver();
    return true;
  } catch (const std::runtime_error& error) {
    if (reason != nullptr) *reason = error.what();
    return false;
  }
}

void set_driver(const Driver* replacement) {
  current.store(replacement, std::memory_order_release);
}

void check(CUresult result, const char* call) {
  if (result == 0) return;
  const char* name = nullptr;
  driver().GetErrorName(result, &name);
  throw std::runtime_error(std::string(call) + ": " + (name ? name : "unknown error") + " (" +
                           std::to_string(result) + ")");
}

}  // namespace seekernel::cu
