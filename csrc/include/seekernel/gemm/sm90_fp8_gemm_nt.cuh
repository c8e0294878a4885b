// D = A @ B^T in FP8 with block scales, bf16 out; tokens on the M side of wgmma.
//
//   D[i, j] = bf16(sum over blocks b of 128 of K: sfa[b, i] * sfb[j / 128, b] * (A_b[i] . B_b[j]))
//
// Shapes: A [m, k] and B [n, k] e4m3, K-major; sfa [k/128, round_up(m, 4)] fp32, M-major; sfb
//   [ceil(n/128), k/128] fp32; D [m, n] bf16. k is a multiple of 128, n of 8, m anything from 1.
//   Edges need no code: TMA reads zeros beyond m and n, and does not write there.
// Roles: warpgroup 0 gives its registers away and one thread of it drives TMA; each of the BLOCK_M
// / 64
//   warpgroups behind it owns 64 rows of the tile. One CTA computes one tile of BLOCK_M x BLOCK_N.
// Shared memory (Plan below): kStages x (A, B, sfa) as the ring; D in slabs of 64 columns; the
// tile's
//   row of sfb; barriers. A, B and D are swizzled by 128 B and start at multiples of 1024.
// Protocol: full[s] takes one arrival and the bytes of A, B and sfa; empty[s] takes one arrival per
//   consumer warp, once it has read the scales and the wgmma that read A and B have finished.
// Numerics: the tensor cores keep about 14 bits of a sum, so each 128 of K is summed there from
// zero
//   and promoted into fp32 registers. Two banks of partial sums: block b + 1 is multiplied while
//   block b is promoted.
// Bound: at large m by the tensor cores, at small m by reading B.
#pragma once

#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/matrix.cuh>
#include <seekernel/ptx/mbarrier.cuh>
#include <seekernel/ptx/tma.cuh>
#include <seekernel/ptx/types.cuh>
#include <seekernel/ptx/wgmma.cuh>

namespace seekernel {

// The compile-time choices and what follows from them. SHAPE_N and SHAPE_K of 0 mean: at run time.
template <int SHAPE_N_, int SHAPE_K_, int BLOCK_M_, int BLOCK_N_, int kStages_>
struct sm90_fp8_gemm_nt_config {
  static constexpr int SHAPE_N = SHAPE_N_, SHAPE_K = SHAPE_K_;
  static constexpr int BLOCK_M = BLOCK_M_, BLOCK_N = BLOCK_N_, BLOCK_K = 128;
  static constexpr int kStages = kStages_;
  static constexpr int kConsumers = BLOCK_M / 64;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  // Of 64 K registers: 128 * 40 + 256 * 232, and 128 * 40 + 128 * 248 where one consumer is alone.
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = kConsumers == 1 ? 248 : 232;
  // Columns of D that lie together in shared memory: 128 bytes, the span of the swizzle.
  static constexpr int kSlab = BLOCK_N < 64 ? BLOCK_N : 64;

  static_assert(BLOCK_M == 64 || BLOCK_M == 128, "one or two consumer warpgroups");
  static_assert(BLOCK_N % 16 == 0 && 128 % BLOCK_N == 0, "a tile lies in one row of sfb");
  static_assert(SHAPE_K % BLOCK_K == 0, "k is a multiple of 128");
  static_assert(kStages >= 2, "the ring overlaps copy and product");
};

namespace sm90_fp8_gemm_nt_detail {

// Byte offsets in dynamic shared memory. csrc/heuristics/gemm.cpp computes the same total.
template <typename Config>
struct Plan {
  static constexpr uint32_t kBytesA = Config::BLOCK_M * Config::BLOCK_K;
  static constexpr uint32_t kBytesB = Config::BLOCK_N * Config::BLOCK_K;
  static constexpr uint32_t kBytesScaleA = Config::BLOCK_M * sizeof(float);
  static constexpr uint32_t kBytesStage = kBytesA + kBytesB + kBytesScaleA;
  static constexpr uint32_t kBytesD = Config::BLOCK_M * Config::BLOCK_N * 2;

  static constexpr uint32_t kA = 0;
  static constexpr uint32_t kB = kA + Config::kStages * kBytesA;
  static constexpr uint32_t kD = kB + Config::kStages * kBytesB;
  static constexpr uint32_t kScaleA = kD + kBytesD;
  static constexpr uint32_t kFull = kScaleA + Config::kStages * kBytesScaleA;
  static constexpr uint32_t kEmpty = kFull + 8 * Config::kStages;
  static constexpr uint32_t kScaleB =
      kEmpty + 8 * Config::kStages;  // k / 128 floats, the last thing
};

// One position of the ring: the slot of K block `index` and the parity of its phase.
template <int kStages>
struct slot_t {
  SEEKERNEL_DEVICE explicit slot_t(int index)
      : stage(index % kStages), parity(index / kStages & 1) {}
  uint32_t stage, parity;
};

template <typename Config>
SEEKERNEL_DEVICE void produce(uint32_t smem, const tensor_map_t* map_a, const tensor_map_t* map_b,
                              const tensor_map_t* map_sfa, int row, int column, int num_blocks) {
  using P = Plan<Config>;
  for (int block = 0; block < num_blocks; ++block) {
    const slot_t<Config::kStages> slot(block);
    const uint32_t full = smem + P::kFull + 8 * slot.stage;
    ptx::mbarrier_wait_parity(smem + P::kEmpty + 8 * slot.stage, slot.parity ^ 1);
    ptx::mbarrier_arrive_expect_tx(full, P::kBytesStage);
    const int k = block * Config::BLOCK_K;
    ptx::tma_load_2d(smem + P::kA + slot.stage * P::kBytesA, map_a, full, k, row);
    ptx::tma_load_2d(smem + P::kB + slot.stage * P::kBytesB, map_b, full, k, column);
    ptx::tma_load_2d(smem + P::kScaleA + slot.stage * P::kBytesScaleA, map_sfa, full, row, block);
  }
}

SEEKERNEL_DEVICE float load_shared(uint32_t address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}

// One consumer warpgroup's 64 rows: issues the product of a K block, or promotes a finished one.
template <typename Config>
struct Consumer {
  using P = Plan<Config>;
  static constexpr int kSums = Config::BLOCK_N / 2;

  // Starts partial = A_block @ B_block^T as one wgmma group.
  SEEKERNEL_DEVICE void issue(float (&partial)[kSums], int block) const {
    const slot_t<Config::kStages> slot(block);
    ptx::mbarrier_wait_parity(smem + P::kFull + 8 * slot.stage, slot.parity);
    const uint64_t a = ptx::wgmma_descriptor_k_major_128b(smem + P::kA + slot.stage * P::kBytesA +
                                                          consumer * 64 * Config::BLOCK_K);
    const uint64_t b = ptx::wgmma_descriptor_k_major_128b(smem + P::kB + slot.stage * P::kBytesB);
    ptx::pin_registers(partial);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Config::BLOCK_K / 32; ++step) {
      // The address field counts 16 bytes: 32 bytes along K are 2.
      ptx::wgmma_e4m3_t<Config::BLOCK_N>::issue(partial, a + 2 * step, b + 2 * step, step != 0);
    }
    ptx::wgmma_commit_group();
    ptx::pin_registers(partial);
  }

  // total += sfa * sfb * partial, then gives the stage back to the producer.
  SEEKERNEL_DEVICE void promote(float (&total)[kSums], float (&partial)[kSums], int block) const {
    const slot_t<Config::kStages> slot(block);
    ptx::pin_registers(partial);
    const uint32_t scale_a = smem + P::kScaleA + slot.stage * P::kBytesScaleA + 4 * row;
    const float scale_b = load_shared(smem + P::kScaleB + 4 * block);
    const float low = load_shared(scale_a) * scale_b, high = load_shared(scale_a + 32) * scale_b;
    // The arrival must come after every lane's read of the scales.
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(smem + P::kEmpty + 8 * slot.stage);
#pragma unroll
    for (int i = 0; i < kSums; ++i) total[i] += (i & 2 ? high : low) * partial[i];
  }

  SEEKERNEL_DEVICE void multiply(float (&total)[kSums], int num_blocks) const {
    float even[kSums], odd[kSums];
    issue(even, 0);
    int block = 0;
    for (; block + 2 < num_blocks; block += 2) {
      issue(odd, block + 1);
      ptx::wgmma_wait_group<1>();
      promote(total, even, block);
      issue(even, block + 2);
      ptx::wgmma_wait_group<1>();
      promote(total, odd, block + 1);
    }
    if (block + 1 < num_blocks) {
      issue(odd, block + 1);
      ptx::wgmma_wait_group<1>();
      promote(total, even, block);
      ptx::wgmma_wait_group<0>();
      promote(total, odd, block + 1);
    } else {
      ptx::wgmma_wait_group<0>();
      promote(total, even, block);
    }
  }

  // Rounds to bf16 and lays the rows out as the swizzled tiles that tma_store_2d reads.
  SEEKERNEL_DEVICE void stage_output(const float (&total)[kSums], uint32_t out) const {
    constexpr uint32_t kRowBytes = Config::kSlab * 2;
    const uint32_t out_row = 16 * warp + lane % 16;
#pragma unroll
    for (int j = 0; j < Config::BLOCK_N / 16; ++j) {
      const float* d = total + 8 * j;
      const uint32_t out_column = 16 * j + lane / 16 * 8;
      const uint32_t slab = out_column / Config::kSlab;
      // The swizzle XORs address bits 4.. with bits 7..: 128-byte rows by row % 8, shorter rows by
      // the number of the 128-byte line they share.
      const uint32_t offset = out_row * kRowBytes + out_column % Config::kSlab * 2;
      const uint32_t mask = (offset >> 7 & 7) & (kRowBytes / 16 - 1);
      ptx::stmatrix_x4(out + slab * 64 * kRowBytes + (offset ^ mask << 4),
                       ptx::pack_bf16x2(d[0], d[1]), ptx::pack_bf16x2(d[2], d[3]),
                       ptx::pack_bf16x2(d[4], d[5]), ptx::pack_bf16x2(d[6], d[7]));
    }
  }

  uint32_t smem;
  int consumer, warp, lane, row;  // row: this thread's first one in the tile; the other is row + 8
};

}  // namespace sm90_fp8_gemm_nt_detail

// Grid: (ceil(n / BLOCK_N), ceil(m / BLOCK_M)). Tensor maps: A and B boxes of 128 bytes x BLOCK_M,
// BLOCK_N rows, swizzle 128B; sfa box BLOCK_M x 1, no swizzle; D box kSlab columns x 64 rows,
// swizzled by the box's row (128, 64 or 32 bytes).
template <typename Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    sm90_fp8_gemm_nt(const __grid_constant__ tensor_map_t map_a,
                     const __grid_constant__ tensor_map_t map_b,
                     const __grid_constant__ tensor_map_t map_sfa,
                     const __grid_constant__ tensor_map_t map_d, const float* sfb, int k) {
  namespace detail = sm90_fp8_gemm_nt_detail;
  using P = detail::Plan<Config>;
  extern __shared__ __align__(1024) uint8_t dynamic_smem[];
  const uint32_t smem = ptx::shared_address(dynamic_smem);
  const int warpgroup = threadIdx.x / 128, lane = threadIdx.x % 32;
  const int row = blockIdx.y * Config::BLOCK_M, column = blockIdx.x * Config::BLOCK_N;
  const int num_blocks = (Config::SHAPE_K != 0 ? Config::SHAPE_K : k) / Config::BLOCK_K;

  // Initialise the ring; the fence makes it known to the TMA unit, __syncthreads to the threads.
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Config::kStages; ++stage) {
      ptx::mbarrier_init(smem + P::kFull + 8 * stage, 1);
      ptx::mbarrier_init(smem + P::kEmpty + 8 * stage, 4 * Config::kConsumers);
    }
    ptx::fence_mbarrier_init();
    ptx::prefetch_tensormap(&map_a);
    ptx::prefetch_tensormap(&map_b);
    ptx::prefetch_tensormap(&map_sfa);
    ptx::prefetch_tensormap(&map_d);
  }
  // Weights and their scales are constants: they need not wait for the kernel before.
  float* scales_b = reinterpret_cast<float*>(dynamic_smem + P::kScaleB);
  const float* sfb_row = sfb + static_cast<int64_t>(column / 128) * num_blocks;
  for (int i = threadIdx.x; i < num_blocks; i += Config::kThreads) scales_b[i] = sfb_row[i];
  __syncthreads();
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();

  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<Config::kProducerRegisters>();
    if (threadIdx.x == 0) {
      detail::produce<Config>(smem, &map_a, &map_b, &map_sfa, row, column, num_blocks);
    }
  } else {
    ptx::setmaxnreg_inc<Config::kConsumerRegisters>();
    const int consumer = warpgroup - 1, warp = threadIdx.x / 32 % 4;
    const detail::Consumer<Config> self{smem, consumer, warp, lane,
                                        64 * consumer + 16 * warp + lane / 4};
    float total[Config::BLOCK_N / 2] = {};
    self.multiply(total, num_blocks);

    const uint32_t out = smem + P::kD + consumer * 64 * Config::BLOCK_N * 2;
    self.stage_output(total, out);
    // The TMA unit reads what all 128 threads wrote: fence per thread, then meet.
    ptx::fence_proxy_async_shared();
    ptx::bar_sync(1 + consumer, 128);
    if (threadIdx.x % 128 == 0) {
#pragma unroll
      for (int slab = 0; slab < Config::BLOCK_N / Config::kSlab; ++slab) {
        ptx::tma_store_2d(&map_d, out + slab * 64 * Config::kSlab * 2,
                          column + slab * Config::kSlab, row + 64 * consumer);
      }
      ptx::bulk_commit_group();
      // Shared memory must outlive the read, and the next kernel must see the write.
      ptx::bulk_wait_group<0>();
    }
  }
}

}  // namespace seekernel
