// cp.async of single words that complete on an mbarrier: for what is too small or too scattered for
// the bulk engine. They belong to the generic proxy: threads may read them once the barrier's phase
// is over.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

// Copies 4 bytes, or writes 4 zero bytes and reads nothing where `valid` is false.
SEEKERNEL_DEVICE void cp_async_4(uint32_t dst, const void* src, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(src),
               "r"(valid ? 4 : 0)
               : "memory");
}

// One of the arrivals that mbarrier_init counted, made once this thread's earlier cp.async landed.
SEEKERNEL_DEVICE void cp_async_mbarrier_arrive_noinc(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

}  // namespace seekernel::ptx
