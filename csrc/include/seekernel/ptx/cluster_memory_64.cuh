// 64-bit stores into another CTA's shared memory (PTX ISA, "st" with .shared::cluster). Addresses
// are those of mapa, multiples of 8.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

SEEKERNEL_DEVICE void store_cluster(uint32_t address, uint64_t value) {
  asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(address), "l"(value) : "memory");
}

}  // namespace seekernel::ptx
