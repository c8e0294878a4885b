// cp.async of 16 bytes and its groups: the gather that tensor maps cannot do. The copies belong to
// the generic proxy: fence before TMA or wgmma read what they wrote.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

// Past L1: the bytes are read once by this SM.
SEEKERNEL_DEVICE void cp_async_16(uint32_t dst, const void* src) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

SEEKERNEL_DEVICE void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most kPending of this thread's groups are unfinished.
template <int kPending>
SEEKERNEL_DEVICE void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace seekernel::ptx
