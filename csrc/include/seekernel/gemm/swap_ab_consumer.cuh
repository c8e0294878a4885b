// The consumer warpgroups of the swapAB kernels: products, promotion, and the sum over a cluster.
//
// A warpgroup owns 64 weight rows (of kHalves matrices). Accumulator i of a thread belongs to
// weight row 16 * warp + lane / 4 + 8 * (i / 2 % 2) and token 8 * (i / 4) + 2 * (lane % 4) + i % 2.
#pragma once

#include <seekernel/gemm/swap_ab_ring.cuh>
#include <seekernel/ptx/shared_memory.cuh>
#include <seekernel/ptx/wgmma.cuh>
#include <seekernel/ptx/wgmma_narrow.cuh>

namespace seekernel::swap_ab_detail {

// Named barriers: one per consumer warpgroup from 1 on, and one for all of them.
inline constexpr int kBarrierAllConsumers = 8;

// Waits for all threads of the cluster; what they wrote to shared memory before is visible.
SEEKERNEL_DEVICE void cluster_sync() {
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
}

template <typename Config>
struct Consumer {
  using P = Plan<Config>;

  // Starts partial = W_block[64, 128] @ tokens[kN, 128]^T as one wgmma group.
  template <int kN>
  SEEKERNEL_DEVICE void issue(float (&partial)[kN / 2], slot_t slot, int half) const {
    if (half == 0) ptx::mbarrier_wait_parity(smem + P::kFull + 8 * slot.stage, slot.parity);
    const uint32_t stage = smem + P::kRing + slot.stage * plan.bytes_stage;
    const uint64_t weights = ptx::wgmma_descriptor_k_major_128b(
        stage + (half * Config::kConsumers + warpgroup) * P::kBytesBox);
    const uint64_t tokens = ptx::wgmma_descriptor_k_major_128b(stage + P::kBytesWeights);
    ptx::pin_registers(partial);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      // The address field counts 16 bytes: 32 bytes along K are 2.
      ptx::wgmma_e4m3_t<kN>::issue(partial, weights + 2 * step, tokens + 2 * step, step != 0);
    }
    ptx::wgmma_commit_group();
    ptx::pin_registers(partial);
  }

  // Waits until at most kPending products are in flight, then total += sfa * sfb * partial.
  // The stage goes back to the producer as soon as it has been read for the last time.
  template <int kN, int kPending>
  SEEKERNEL_DEVICE void promote(float (&total)[kN / 2], float (&partial)[kN / 2], slot_t slot,
                                int half) const {
    // Loads first: they run beside the products.
    const uint32_t scales = smem + plan.scales + slot.stage * plan.bytes_scales;
    const float weight = ptx::load_shared_f32(scales + plan.weight_scale + 4 * half);
    float2 scale[kN / 8];
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      scale[j] = ptx::load_shared_f32x2(scales + 32 * j + 8 * (lane % 4));
    }
    ptx::wgmma_wait_group<kPending>();
    ptx::pin_registers(partial);
    if (half == Config::kHalves - 1) {
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(smem + P::kEmpty + 8 * slot.stage);
    }
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      const float even = scale[j].x * weight, odd = scale[j].y * weight;
      total[4 * j] += even * partial[4 * j];
      total[4 * j + 1] += odd * partial[4 * j + 1];
      total[4 * j + 2] += even * partial[4 * j + 2];
      total[4 * j + 3] += odd * partial[4 * j + 3];
    }
  }

  // One matrix. Two banks of partial sums, so that one is promoted while the other is multiplied;
  // one bank where there is nothing to hide (8 tokens) or no room (128).
  template <int kN>
  SEEKERNEL_DEVICE void multiply(float (&total)[1][kN / 2], slot_t& slot, int num_blocks) const {
    if constexpr (kN == 8 || kN == 128) {
      float partial[kN / 2];
      for (int block = 0; block < num_blocks; ++block) {
        issue<kN>(partial, slot, 0);
        promote<kN, 0>(total[0], partial, slot, 0);
        slot.advance(num_stages);
      }
    } else {
      float even[kN / 2], odd[kN / 2];
      issue<kN>(even, slot, 0);
      int block = 0;
      for (; block + 2 < num_blocks; block += 2) {
        const slot_t first = slot;
        slot.advance(num_stages);
        issue<kN>(odd, slot, 0);
        promote<kN, 1>(total[0], even, first, 0);
        const slot_t second = slot;
        slot.advance(num_stages);
        issue<kN>(even, slot, 0);
        promote<kN, 1>(total[0], odd, second, 0);
      }
      if (block + 1 < num_blocks) {
        const slot_t first = slot;
        slot.advance(num_stages);
        issue<kN>(odd, slot, 0);
        promote<kN, 1>(total[0], even, first, 0);
        promote<kN, 0>(total[0], odd, slot, 0);
      } else {
        promote<kN, 0>(total[0], even, slot, 0);
      }
      slot.advance(num_stages);
    }
  }

  // Two matrices on the same tokens: the one is promoted while the other is multiplied.
  template <int kN>
  SEEKERNEL_DEVICE void multiply(float (&total)[2][kN / 2], slot_t& slot, int num_blocks) const {
    float gate[kN / 2], up[kN / 2];
    issue<kN>(gate, slot, 0);
    for (int block = 0; block + 1 < num_blocks; ++block) {
      issue<kN>(up, slot, 1);
      promote<kN, 1>(total[0], gate, slot, 0);
      const slot_t last = slot;
      slot.advance(num_stages);
      issue<kN>(gate, slot, 0);
      promote<kN, 1>(total[1], up, last, 1);
    }
    issue<kN>(up, slot, 1);
    promote<kN, 1>(total[0], gate, slot, 0);
    promote<kN, 0>(total[1], up, slot, 1);
    slot.advance(num_stages);
  }

  // Whether this CTA writes the tokens [8 * j, 8 * j + 8) of the tile: they go round the cluster.
  SEEKERNEL_DEVICE bool owns(int j) const { return j % splits == rank; }

  // total of the owned tokens = sum over the cluster, in the order of the ranks. The partial sums
  // take the place of the ring, which is done with: a cluster computes one tile.
  template <int kN>
  SEEKERNEL_DEVICE void sum_over_cluster(float (&total)[Config::kHalves][kN / 2]) const {
    // The other warpgroups may still read the ring.
    ptx::bar_sync(kBarrierAllConsumers, 128 * Config::kConsumers);
    const uint32_t mine = smem + P::kRing + 16 * thread;
    const auto offset = [&](int half, int j) {
      return ((warpgroup * Config::kHalves + half) * (kN / 8) + j) * 128u * 16u;
    };
#pragma unroll
    for (int half = 0; half < Config::kHalves; ++half) {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
        const float* t = total[half] + 4 * j;
        ptx::store_shared_f32x4(mine + offset(half, j), t[0], t[1], t[2], t[3]);
      }
    }
    cluster_sync();
#pragma unroll
    for (int half = 0; half < Config::kHalves; ++half) {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
        float* t = total[half] + 4 * j;
        if (!owns(j)) continue;
        t[0] = t[1] = t[2] = t[3] = 0.0f;
        for (int peer = 0; peer < splits; ++peer) {
          const float4 part =
              ptx::load_shared_cluster_f32x4(ptx::mapa(mine + offset(half, j), peer));
          t[0] += part.x;
          t[1] += part.y;
          t[2] += part.z;
          t[3] += part.w;
        }
      }
    }
    // Nobody may leave while others read its shared memory.
    ptx::barrier_cluster_arrive();
  }

  uint32_t smem;
  Plan<Config> plan;
  int num_stages;
  int warpgroup, warp, lane, thread;  // warp and thread within the warpgroup
  int rank, splits;
};

}  // namespace seekernel::swap_ab_detail
