// The consumer warpgroups of the swapAB kernels: products, promotion, and the sum over a cluster.
//
// A warpgroup owns 64 weight rows (of kHalves matrices). Accumulator i of a thread belongs to
// weight row 16 * warp + lane / 4 + 8 * (i / 2 % 2) and token 8 * (i / 4) + 2 * (lane % 4) + i % 2.
#pragma once

#include <seekernel/gemm/swap_ab_ring.cuh>
#include <seekernel/ptx/shared_memory.cuh>
#include <seekernel/ptx/wgmma.cuh>
#include <seekernel/ptx/wgmma_e4m3_rs.cuh>
#include <seekernel/ptx/wgmma_narrow.cuh>

namespace seekernel::swap_ab_detail {

// Named barriers: one per consumer warpgroup from 1 on, and one for all of them.
inline constexpr int kBarrierAllConsumers = 8;
inline constexpr int kMaxSplits = 8;

// Waits for all threads of the cluster; what they wrote to shared memory before is visible.
SEEKERNEL_DEVICE void cluster_sync() {
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
}

template <typename Config>
struct Consumer {
  using P = Plan<Config>;

  // What is multiplied as one wgmma group: tokens from `token` on by one half of the weights.
  struct part_t {
    int half, token;
    bool first, last;  // of the stage
  };

  // Partial sums of a product in flight, and its weights where they come from registers.
  template <int kN>
  struct bank_t {
    float sums[kN / 2];
    uint32_t weights[16];
  };

  // Starts sums = W_block[64, 128] @ tokens[kN, 128]^T.
  template <int kN>
  SEEKERNEL_DEVICE void issue(bank_t<kN>& bank, slot_t slot, part_t part) const {
    if (part.first) ptx::mbarrier_wait_parity(smem + P::kFull + 8 * slot.stage, slot.parity);
    const uint32_t stage = smem + P::kRing + slot.stage * plan.bytes_stage;
    const uint32_t box = stage + (part.half * Config::kConsumers + warpgroup) * P::kBytesBox;
    if constexpr (Config::kInt4) {
      if (part.first) expand_int4(bank.weights, box + 16 * thread);
      ptx::pin_fragments(bank.weights);
    }
    const uint64_t weights = ptx::wgmma_descriptor_k_major_128b(box);
    const uint64_t tokens =
        ptx::wgmma_descriptor_k_major_128b(stage + P::kBytesWeights + part.token * 128);
    ptx::pin_registers(bank.sums);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      // The address field counts 16 bytes: 32 bytes along K are 2.
      if constexpr (Config::kInt4) {
        ptx::wgmma_e4m3_rs_t<kN>::issue(bank.sums, bank.weights + 4 * step, tokens + 2 * step,
                                        step != 0);
      } else {
        ptx::wgmma_e4m3_t<kN>::issue(bank.sums, weights + 2 * step, tokens + 2 * step, step != 0);
      }
    }
    ptx::wgmma_commit_group();
    ptx::pin_registers(bank.sums);
  }

  // This thread's 64 weights of a block, in the order of four register operands of wgmma. A nibble
  // is a sign and a magnitude of 0 to 7: with five zero bits between them, an e4m3 of so many times
  // 2^-9. Of a word, one operand register's nibbles lie where e4m3 has sign and mantissa, the other
  // one's four bits higher, so that a rotation brings them there.
  SEEKERNEL_DEVICE static void expand_int4(uint32_t (&weights)[16], uint32_t address) {
    constexpr uint32_t kSignAndMantissa = 0x87878787u;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 words = ptx::load_shared_u32x4(address + half * 2048);
      const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weights[8 * half + 2 * i] = w[i] & kSignAndMantissa;
        weights[8 * half + 2 * i + 1] = __funnelshift_r(w[i], w[i], 4) & kSignAndMantissa;
      }
    }
  }

  // Waits until at most kPending groups are in flight, then total += scales * sums.
  template <int kPending, int kN>
  SEEKERNEL_DEVICE void promote(float* total, bank_t<kN>& bank, slot_t slot, part_t part) const {
    const uint32_t scales = smem + plan.scales + slot.stage * plan.bytes_scales;
    if constexpr (Config::kInt4) {
      // A scale for each of this thread's two weight rows; tokens share one, which comes last.
      const uint32_t row = scales + 4 * (64 * warpgroup + 16 * warp + lane / 4);
      const float low = ptx::load_shared_f32(row), high = ptx::load_shared_f32(row + 32);
      wait<kPending>(bank);
      release(slot, part);
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) add(total[i], i & 2 ? high : low, bank.sums[i]);
    } else {
      const float weight = ptx::load_shared_f32(scales + plan.weight_scale + 4 * part.half);
      constexpr int kGroups = kN / 8, kChunk = kGroups > 8 ? 4 : kGroups;
#pragma unroll
      for (int first = 0; first < kGroups; first += kChunk) {
        // Loads before the wait, where registers allow: they run beside the products.
        float2 scale[kChunk];
#pragma unroll
        for (int j = 0; j < kChunk; ++j) {
          scale[j] =
              ptx::load_shared_f32x2(scales + 4 * part.token + 32 * (first + j) + 8 * (lane % 4));
        }
        if (first == 0) wait<kPending>(bank);
        if (first + kChunk == kGroups) release(slot, part);
#pragma unroll
        for (int j = 0; j < kChunk; ++j) {
          const float even = scale[j].x * weight, odd = scale[j].y * weight;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int at = 4 * (first + j) + i;
            add(total[at], i & 1 ? odd : even, bank.sums[at]);
          }
        }
      }
    }
  }

  // Keeps later loads from being moved up, and the next product from passing the read of `sum`.
  SEEKERNEL_DEVICE static void add(float& total, float scale, float sum) {
    total += scale * sum;
    asm volatile("" : "+f"(total));
  }

  template <int kPending, int kN>
  SEEKERNEL_DEVICE static void wait(bank_t<kN>& bank) {
    ptx::wgmma_wait_group<kPending>();
    ptx::pin_registers(bank.sums);
    if constexpr (Config::kInt4) ptx::pin_fragments(bank.weights);
  }

  // Gives the stage back to the producers once every lane has read it.
  SEEKERNEL_DEVICE void release(slot_t slot, part_t part) const {
    if (!part.last) return;
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(smem + P::kEmpty + 8 * slot.stage);
  }

  // total = the sum over the K blocks.
  template <int kN>
  SEEKERNEL_DEVICE void multiply(float (&total)[Config::kHalves][kN / 2], slot_t& slot,
                                 int num_blocks) const {
    if constexpr (Config::kHalves == 2) {
      // Both of a K block are in flight at once; across blocks the other warpgroup fills the gaps.
      constexpr part_t kGate{0, 0, true, false}, kUp{1, 0, false, true};
      bank_t<kN> gate, up;
      for (int block = 0; block < num_blocks; ++block) {
        issue(gate, slot, kGate);
        issue(up, slot, kUp);
        promote<1>(total[0], gate, slot, kGate);
        promote<0>(total[1], up, slot, kUp);
        slot.advance(num_stages);
      }
    } else if constexpr (kN == 8 || kN > (Config::kInt4 ? 32 : 64)) {
      // One bank: four FMAs are not worth a second one, and for many tokens there are no registers;
      // for 128 of them the bank takes 64 at a time. The other warpgroup fills the gaps.
      constexpr int kPart = kN == 128 ? 64 : kN;
      bank_t<kPart> bank;
      for (int block = 0; block < num_blocks; ++block) {
#pragma unroll
        for (int token = 0; token < kN; token += kPart) {
          const part_t part{0, token, token == 0, token + kPart == kN};
          issue(bank, slot, part);
          promote<0>(total[0] + token / 2, bank, slot, part);
        }
        slot.advance(num_stages);
      }
    } else {
      multiply_blocks<kN>(total[0], slot, num_blocks);
    }
  }

  // Two banks of partial sums take turns: one is promoted while the other is multiplied.
  template <int kN>
  SEEKERNEL_DEVICE void multiply_blocks(float* total, slot_t& slot, int num_blocks) const {
    constexpr part_t kWhole{0, 0, true, true};
    bank_t<kN> even, odd;
    issue(even, slot, kWhole);
    int block = 0;
    for (; block + 2 < num_blocks; block += 2) {
      const slot_t first = slot;
      slot.advance(num_stages);
      issue(odd, slot, kWhole);
      promote<1>(total, even, first, kWhole);
      const slot_t second = slot;
      slot.advance(num_stages);
      issue(even, slot, kWhole);
      promote<1>(total, odd, second, kWhole);
    }
    if (block + 1 < num_blocks) {
      const slot_t first = slot;
      slot.advance(num_stages);
      issue(odd, slot, kWhole);
      promote<1>(total, even, first, kWhole);
      promote<0>(total, odd, slot, kWhole);
    } else {
      promote<0>(total, even, slot, kWhole);
    }
    slot.advance(num_stages);
  }

  // Lays the partial sums where the ring was, which is done with: a cluster computes one tile.
  // Thereafter all of the cluster's are there to be gathered.
  template <int kN>
  SEEKERNEL_DEVICE void publish(const float (&total)[Config::kHalves][kN / 2]) const {
    // The other warpgroups may still read the ring.
    ptx::bar_sync(kBarrierAllConsumers, 128 * Config::kConsumers);
#pragma unroll
    for (int half = 0; half < Config::kHalves; ++half) {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
        const float* t = total[half] + 4 * j;
        ptx::store_shared_f32x4(partial_sums(half, j), t[0], t[1], t[2], t[3]);
      }
    }
    cluster_sync();
  }

  // This thread's sums of tokens [8 * j, 8 * j + 8), added in the order of the ranks.
  SEEKERNEL_DEVICE void gather(float (&sum)[Config::kHalves][4], int j) const {
#pragma unroll
    for (int half = 0; half < Config::kHalves; ++half) {
      // All loads first: they take turns on the way, not in waiting for it.
      float4 part[kMaxSplits];
#pragma unroll
      for (int peer = 0; peer < kMaxSplits; ++peer) {
        if (peer < splits) {
          part[peer] = ptx::load_shared_cluster_f32x4(ptx::mapa(partial_sums(half, j), peer));
        }
      }
      float* t = sum[half];
      t[0] = t[1] = t[2] = t[3] = 0.0f;
#pragma unroll
      for (int peer = 0; peer < kMaxSplits; ++peer) {
        if (peer < splits) {
          t[0] += part[peer].x;
          t[1] += part[peer].y;
          t[2] += part[peer].z;
          t[3] += part[peer].w;
        }
      }
    }
  }

  SEEKERNEL_DEVICE uint32_t partial_sums(int half, int j) const {
    constexpr uint32_t kBytesGroup = 128 * 16;
    return smem + P::kRing +
           ((j * Config::kConsumers + warpgroup) * Config::kHalves + half) * kBytesGroup +
           16 * thread;
  }

  uint32_t smem;
  Plan<Config> plan;
  int num_stages;
  int warpgroup, warp, lane, thread;  // warp and thread within the warpgroup
  int rank, splits;
};

}  // namespace seekernel::swap_ab_detail
