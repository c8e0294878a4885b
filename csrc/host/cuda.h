// What every CUDA launcher needs: the current stream, the device of the tensors, the launch's
// error.
//
// The extension links the CUDA runtime statically and nothing else of CUDA: it loads where there is
// neither a driver nor libtorch_cuda. The one symbol of libtorch_cuda it uses is looked up at run
// time.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "host/torch.h"

namespace seekernel::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// After a launch: throws with the kernel's name if the launch was refused. Does not wait for it.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

// torch's current stream of a device.
inline cudaStream_t current_stream(int32_t device) {
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter getter = [] {
    // A CUDA tensor exists, so torch has loaded the library: RTLD_NOLOAD finds that copy.
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol =
        dlsym(library != nullptr ? library : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<Getter>(symbol);
  }();
  if (getter == nullptr) {
    throw std::runtime_error("this torch has no aoti_torch_get_current_cuda_stream");
  }
  void* stream = nullptr;
  if (getter(device, &stream) != 0) {
    throw std::runtime_error("no current CUDA stream on device " + std::to_string(device));
  }
  return static_cast<cudaStream_t>(stream);
}

// Makes a device current for the lifetime of the guard.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (previous_ != device) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = previous_ != device;
  }
  ~DeviceGuard() {
    if (changed_) static_cast<void>(cudaSetDevice(previous_));
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

}  // namespace seekernel::cuda
