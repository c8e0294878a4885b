// ld.global of data that the kernel does not write, in the order of the program.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

SEEKERNEL_DEVICE uint4 load_global_b128(const void* pointer) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(pointer));
  return value;
}

}  // namespace seekernel::ptx
