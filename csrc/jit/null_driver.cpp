#include "jit/null_driver.h"

#include <algorithm>
#include <cstring>

namespace seekernel::jit {
namespace {

int handle;

template <typename Handle>
Handle some_handle() {
  return reinterpret_cast<Handle>(&handle);
}

const Driver kNull{
    .Init = [](unsigned) { return 0; },
    .DriverGetVersion = [](int* version) { return *version = 0, 0; },
    .GetErrorName = [](CUresult, const char** name) { return *name = "null driver", 0; },
    .DeviceGetCount = [](int* count) { return *count = 1, 0; },
    .DeviceGetAttribute =
        [](int* value, int attribute, CUdevice) {
          // An H100: 132 SMs, compute capability 9.0.
          return *value = attribute == 16 ? 132 : attribute == 75 ? 9 : 0, 0;
        },
    .CtxGetDevice = [](CUdevice* device) { return *device = 0, 0; },
    .LibraryLoadData =
        [](CUlibrary* library, const void*, int*, void**, unsigned, int*, void**, unsigned) {
          ++last_launch().num_loads;
          return *library = some_handle<CUlibrary>(), 0;
        },
    .LibraryUnload = [](CUlibrary) { return 0; },
    .LibraryGetKernel = [](CUkernel* kernel, CUlibrary,
                           const char*) { return *kernel = some_handle<CUkernel>(), 0; },
    .KernelGetAttribute = [](int* value, int, CUkernel, CUdevice) { return *value = 0, 0; },
    .KernelSetAttribute = [](int, int, CUkernel, CUdevice) { return 0; },
    .TensorMapEncodeTiled =
        [](CUtensorMap* map, int, uint32_t, void*, const uint64_t*, const uint64_t*,
           const uint32_t*, const uint32_t*, int, int, int, int) {
          ++last_launch().num_encodes;
          std::memset(map, 0, sizeof *map);
          return 0;
        },
    .LaunchKernelEx =
        [](const LaunchConfig* config, CUkernel, void** parameters, void**) {
          LastLaunch& last = last_launch();
          last.config = *config;
          const unsigned count = std::min(config->num_attributes, 4u);
          std::copy(config->attributes, config->attributes + count, last.attributes);
          last.parameters = parameters;
          ++last.num_launches;
          return 0;
        },
};

}  // namespace

const Driver* null_driver() { return &kNull; }

LastLaunch& last_launch() {
  static LastLaunch last{};
  return last;
}

}  // namespace seekernel::jit
