// cp.async.bulk.tensor.3d beyond the plain load of tma.cuh: to several CTAs, and back to memory.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

// Lands at the same offset in every CTA of the cluster whose bit is set, on that CTA's barrier.
SEEKERNEL_DEVICE void tma_load_3d_multicast(uint32_t dst, const tensor_map_t* map, uint32_t barrier,
                                            int x, int y, int z, uint16_t cta_mask) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(dst),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(cta_mask)
      : "memory");
}

SEEKERNEL_DEVICE void tma_store_3d(const tensor_map_t* map, uint32_t src, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
          map),
      "r"(src), "r"(x), "r"(y), "r"(z)
      : "memory");
}

}  // namespace seekernel::ptx
