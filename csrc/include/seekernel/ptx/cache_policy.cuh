// createpolicy and the copies that take one: how long a line is worth keeping in the L2 cache.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

// createpolicy.fractional: for what is read once.
SEEKERNEL_DEVICE uint64_t policy_evict_first() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// createpolicy.fractional: for what every CTA reads again.
SEEKERNEL_DEVICE uint64_t policy_evict_last() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

SEEKERNEL_DEVICE void tma_load_2d_hinted(uint32_t dst, const tensor_map_t* map, uint32_t barrier,
                                         int x, int y, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(dst),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "l"(policy)
      : "memory");
}

SEEKERNEL_DEVICE void bulk_load_hinted(uint32_t dst, const void* src, uint32_t num_bytes,
                                       uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1], %2, [%3], %4;" ::"r"(dst),
      "l"(src), "r"(num_bytes), "r"(barrier), "l"(policy)
      : "memory");
}

}  // namespace seekernel::ptx
