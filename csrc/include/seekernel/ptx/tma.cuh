// cp.async.bulk.*: copies by the tensor memory accelerator, tiled by a tensor map or plain.
//
// Coordinates are in elements, innermost first. Loads complete on an mbarrier; stores on the bulk
// groups of the thread that issued them.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

SEEKERNEL_DEVICE void prefetch_tensormap(const tensor_map_t* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

SEEKERNEL_DEVICE void tma_load_2d(uint32_t dst, const tensor_map_t* map, uint32_t barrier, int x,
                                  int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4}], [%2];" ::"r"(dst),
      "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}

SEEKERNEL_DEVICE void tma_load_3d(uint32_t dst, const tensor_map_t* map, uint32_t barrier, int x,
                                  int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(dst),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// Lands at the same offset in every CTA of the cluster whose bit is set, on that CTA's barrier.
SEEKERNEL_DEVICE void tma_load_2d_multicast(uint32_t dst, const tensor_map_t* map, uint32_t barrier,
                                            int x, int y, uint16_t cta_mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(dst),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "h"(cta_mask)
      : "memory");
}

SEEKERNEL_DEVICE void tma_store_2d(const tensor_map_t* map, uint32_t src, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
      "r"(src), "r"(x), "r"(y)
      : "memory");
}

SEEKERNEL_DEVICE void bulk_load(uint32_t dst, const void* src, uint32_t num_bytes,
                                uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(dst),
      "l"(src), "r"(num_bytes), "r"(barrier)
      : "memory");
}

SEEKERNEL_DEVICE void bulk_store(void* dst, uint32_t src, uint32_t num_bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst), "r"(src),
               "r"(num_bytes)
               : "memory");
}

SEEKERNEL_DEVICE void bulk_commit_group() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until at most kPending of this thread's bulk groups are unfinished.
template <int kPending>
SEEKERNEL_DEVICE void bulk_wait_group() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

// As bulk_wait_group, but only for their reads of shared memory: the source may be reused.
template <int kPending>
SEEKERNEL_DEVICE void bulk_wait_group_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

}  // namespace seekernel::ptx
