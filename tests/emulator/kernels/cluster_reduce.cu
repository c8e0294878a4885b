// Sum over a cluster through distributed shared memory: y[c] = sum over the 4 CTAs of x[rank, c].
//
// Shapes: x [clusters * 4, 128] fp32, y [clusters, 128] fp32; cluster of 4, 128 threads.
// Protocol: every CTA stages its row in its own shared memory; a cluster barrier publishes it; rank
// 0
//   reads the four rows in rank order; a second cluster barrier keeps the others alive meanwhile.
#include "ptx.cuh"

constexpr int kCluster = 4, kColumns = 128;

DEVICE float load_remote(uint32 address) {
  float value;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}

DEVICE void store_remote(uint32 address, float value) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

extern "C" __global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kColumns)
    cluster_reduce(const float* x, float* y) {
#ifdef PUSH
  __shared__ float inbox[kCluster][kColumns];
#else
  __shared__ float row[kColumns];
#endif
  const int column = threadIdx.x;
  const uint32 rank = cluster_ctarank();
  const float mine = x[blockIdx.x * kColumns + column];
  float total = 0.f;
#ifdef PUSH
  // Nobody may write into a CTA that has not started.
#ifndef BUG_NO_START_SYNC
  cluster_sync();
#endif
#ifdef BUG_SAME_INBOX
  store_remote(mapa(shared_address(&inbox[0][column]), 0), mine);
#else
  store_remote(mapa(shared_address(&inbox[rank][column]), 0), mine);
#endif
  cluster_sync();
  if (rank != 0) return;
  for (int peer = 0; peer < kCluster; ++peer) total += inbox[peer][column];
#else
  row[column] = mine;
#ifdef BUG_RELAXED_ARRIVE
  cluster_arrive_relaxed();
  cluster_wait();
#elif !defined(BUG_NO_SYNC)
  cluster_sync();
#endif
  if (rank == 0) {
#ifdef BUG_RANK_RANGE
    for (int peer = 0; peer <= kCluster; ++peer)
#else
    for (int peer = 0; peer < kCluster; ++peer)
#endif
      total += load_remote(mapa(shared_address(&row[column]), peer));
  }
#ifndef BUG_NO_EXIT_SYNC
  cluster_sync();
#endif
  if (rank != 0) return;
#endif
  y[blockIdx.x / kCluster * kColumns + column] = total;
}
