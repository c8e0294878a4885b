// bar.sync and bar.arrive with the barrier's number as an immediate: a number in a register makes
// the assembler reserve all sixteen.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

template <int kId, int kThreads>
SEEKERNEL_DEVICE void named_barrier_sync() {
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}

template <int kId, int kThreads>
SEEKERNEL_DEVICE void named_barrier_arrive() {
  asm volatile("bar.arrive %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}

}  // namespace seekernel::ptx
