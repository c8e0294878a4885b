// The part of the CUDA driver's interface that launches need, found at run time.
//
// No cuda.h: this must compile where there is no toolkit and load where there is no driver. The
// types and values below are the driver's binary interface; tests compare them with cuda.h where it
// exists.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

// The toolkit's own names, at its own scope: a file that includes its headers too means the same.
struct CUlib_st;
struct CUkern_st;
struct CUstream_st;

namespace seekernel::cu {

using CUresult = int;
using CUdevice = int;
using CUlibrary = ::CUlib_st*;
using CUkernel = ::CUkern_st*;
using CUstream = ::CUstream_st*;

// cuda.h of CUDA 13 asks for 128 bytes, that of 12 for 64; the device needs 64.
struct alignas(128) CUtensorMap {
  uint64_t opaque[16];
};

enum LaunchAttributeId : int { kClusterDimension = 4, kProgrammaticStreamSerialization = 6 };

struct LaunchAttribute {
  LaunchAttributeId id;
  char padding[4];
  union alignas(8) {
    char bytes[64];
    struct {
      unsigned x, y, z;
    } cluster;
    int programmatic_serialization;
  } value;
};

struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  CUstream stream;
  LaunchAttribute* attributes;
  unsigned num_attributes;
};

enum FunctionAttribute : int {
  kLocalBytes = 3,
  kNumRegisters = 4,
  kMaxDynamicSharedBytes = 8,
};

enum class ElementType : int {
  kUint8 = 0,
  kUint16 = 1,
  kInt32 = 3,
  kFloat16 = 6,
  kFloat32 = 7,
  kBfloat16 = 9
};
enum class Swizzle : int { kNone = 0, k32 = 1, k64 = 2, k128 = 3 };
enum class L2Promotion : int { kNone = 0, k128 = 2, k256 = 3 };

// Entry points under the driver's names without their prefix. All are set, or none.
struct Driver {
  CUresult (*Init)(unsigned flags);
  CUresult (*DriverGetVersion)(int* version);
  CUresult (*GetErrorName)(CUresult result, const char** name);
  CUresult (*DeviceGetCount)(int* count);
  CUresult (*DeviceGetAttribute)(int* value, int attribute, CUdevice device);
  CUresult (*CtxGetDevice)(CUdevice* device);
  CUresult (*LibraryLoadData)(CUlibrary* library, const void* code, int* jit_options,
                              void** jit_values, unsigned num_jit_options, int* library_options,
                              void** library_values, unsigned num_library_options);
  CUresult (*LibraryUnload)(CUlibrary library);
  CUresult (*LibraryGetKernel)(CUkernel* kernel, CUlibrary library, const char* name);
  CUresult (*KernelGetAttribute)(int* value, int attribute, CUkernel kernel, CUdevice device);
  CUresult (*KernelSetAttribute)(int attribute, int value, CUkernel kernel, CUdevice device);
  CUresult (*TensorMapEncodeTiled)(CUtensorMap* map, int element_type, uint32_t rank, void* address,
                                   const uint64_t* dims, const uint64_t* strides_bytes,
                                   const uint32_t* box, const uint32_t* element_strides,
                                   int interleave, int swizzle, int l2_promotion, int oob_fill);
  // Takes a CUfunction; a CUkernel is one.
  CUresult (*LaunchKernelEx)(const LaunchConfig* config, CUkernel kernel, void** parameters,
                             void** extra);
};

// The machine's driver, opened and initialised at the first call. Throws std::runtime_error saying
// what is missing where there is none.
const Driver& driver();

// Whether driver() would succeed; never throws. `reason` gets the message otherwise.
bool driver_available(std::string* reason = nullptr);

// Replaces the driver by another table, such as the null driver of seekernel._jit.
void set_driver(const Driver* replacement);

// Throws std::runtime_error: what was called, the driver's name for the error.
void check(CUresult result, const char* call);

}  // namespace seekernel::cu
