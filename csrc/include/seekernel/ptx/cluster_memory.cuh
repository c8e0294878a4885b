// Plain loads and stores of another CTA's shared memory (PTX ISA, "ld", "st" with .shared::cluster)
// and the L2 prefetch. Addresses are those of mapa.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

SEEKERNEL_DEVICE uint32_t load_cluster(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

SEEKERNEL_DEVICE void store_cluster(uint32_t address, uint32_t value) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

SEEKERNEL_DEVICE void store_cluster(uint32_t address, float4 v) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v.x),
               "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
}

// Brings the line that holds `p` into L2; touches no register and needs no wait.
SEEKERNEL_DEVICE void prefetch_l2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p) : "memory");
}

}  // namespace seekernel::ptx
