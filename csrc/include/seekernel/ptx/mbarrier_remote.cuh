// mbarrier.arrive on a barrier of another CTA of the cluster, without a fence of the cluster.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

// Releases at the scope of this CTA, which is enough to say "I have read, you may overwrite": there
// is nothing that the other CTA would read. mbarrier_arrive_cluster costs a memory barrier of the
// cluster in every call. `barrier` is a shared::cluster address, as mapa gives it.
SEEKERNEL_DEVICE void mbarrier_arrive_remote(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

}  // namespace seekernel::ptx
