// D[g] = A[g] @ B[g]^T in bf16, for every g of a batch: the absorbed products of MLA, W_UK and
// W_UV.
//
//   D[g, i, j] = bf16(sum over k: A[g, i, k] * B[g, j, k]), summed in fp32 by the tensor cores
//
// Shapes: A [g, m, k], B [g, n, k], D [g, m, n], all bf16 with any strides of g and of rows that
// are
//   multiples of 16 bytes: q[:, h].transpose(0, 1) is read, and its counterpart written, in place.
//   n and k are multiples of 8. Edges need no code: TMA reads zeros beyond m, n and k, and does not
//   write there.
// Roles: warp 0 of the last 32 threads drives TMA with one thread; each of the BLOCK_M / 64
//   warpgroups before it owns 64 rows of a BLOCK_M x 128 tile, one CTA a tile; two or three CTAs of
//   an SM hide each other's start and end.
// Few tokens stay on wgmma-M: 64 rows of it take half as long as the fetch of 128 rows of weights
//   takes at an SM's share of HBM, so nothing is won by the swapped form.
// Shared memory (Plan): kStages x (A, B) of 64 columns of K as the ring; D in slabs of 64 rows x 64
//   columns; barriers. All tiles are swizzled by 128 B and start at multiples of 1024.
// Protocol: full[s] takes one arrival and the bytes of A and B; empty[s] takes one arrival per
//   consumer warp, once the wgmma that read the stage have finished.
// PDL: the first stages of B are fetched before griddepcontrol.wait: weights are constants.
// Bound: reading B at few tokens; writing D and reading A at many (K is 128 or 512).
#pragma once

#include <seekernel/ptx/barrier.cuh>
#include <seekernel/ptx/matrix.cuh>
#include <seekernel/ptx/mbarrier.cuh>
#include <seekernel/ptx/tma.cuh>
#include <seekernel/ptx/tma_3d.cuh>
#include <seekernel/ptx/wgmma_16bit.cuh>

namespace seekernel {

template <int BLOCK_M_, int kStages_>
struct sm90_bf16_bmm_nt_config {
  static constexpr int BLOCK_M = BLOCK_M_, BLOCK_N = 128, BLOCK_K = 64;
  static constexpr int kStages = kStages_;
  static constexpr int kConsumers = BLOCK_M / 64;
  static constexpr int kThreads = 128 * kConsumers + 32;
  static_assert(BLOCK_M == 64 || BLOCK_M == 128, "one or two consumer warpgroups");
  static_assert(kStages >= 2, "the ring overlaps copy and product");
};

namespace sm90_bf16_bmm_nt_detail {

// Byte offsets in dynamic shared memory. The host asks for kBytes.
template <typename Config>
struct Plan {
  static constexpr uint32_t kBytesA = Config::BLOCK_M * Config::BLOCK_K * 2;
  static constexpr uint32_t kBytesB = Config::BLOCK_N * Config::BLOCK_K * 2;
  static constexpr uint32_t kBytesSlab = 64 * 64 * 2;
  static constexpr uint32_t kA = 0;
  static constexpr uint32_t kB = kA + Config::kStages * kBytesA;
  static constexpr uint32_t kD = kB + Config::kStages * kBytesB;
  static constexpr uint32_t kFull = kD + Config::BLOCK_M * Config::BLOCK_N * 2;
  static constexpr uint32_t kEmpty = kFull + 8 * Config::kStages;
  static constexpr uint32_t kBytes = kEmpty + 8 * Config::kStages;
};

// The tile's place: batch g, first row of A and D, first row of B and column of D.
struct place_t {
  int row, column, batch;
};

template <typename Config>
SEEKERNEL_DEVICE void produce(uint32_t smem, const tensor_map_t* map_a, const tensor_map_t* map_b,
                              const place_t& at, int num_blocks) {
  using P = Plan<Config>;
  const auto fetch_b = [&](int block, int stage) {
    const uint32_t full = smem + P::kFull + 8 * stage;
    ptx::mbarrier_arrive_expect_tx(full, P::kBytesA + P::kBytesB);
    ptx::tma_load_3d(smem + P::kB + stage * P::kBytesB, map_b, full, block * Config::BLOCK_K,
                     at.column, at.batch);
  };
  const auto fetch_a = [&](int block, int stage) {
    ptx::tma_load_3d(smem + P::kA + stage * P::kBytesA, map_a, smem + P::kFull + 8 * stage,
                     block * Config::BLOCK_K, at.row, at.batch);
  };
  const int num_first = min(num_blocks, Config::kStages);
  for (int block = 0; block < num_first; ++block) fetch_b(block, block);
  ptx::griddepcontrol_wait();
  for (int block = 0; block < num_first; ++block) fetch_a(block, block);
  for (int block = num_first; block < num_blocks; ++block) {
    const int stage = block % Config::kStages;
    ptx::mbarrier_wait_parity(smem + P::kEmpty + 8 * stage, (block / Config::kStages & 1) ^ 1);
    fetch_b(block, stage);
    fetch_a(block, stage);
  }
}

template <typename Config>
SEEKERNEL_DEVICE void multiply(float (&sums)[64], uint32_t smem, int consumer, int lane,
                               int num_blocks) {
  using P = Plan<Config>;
  for (int block = 0; block < num_blocks; ++block) {
    const int stage = block % Config::kStages;
    ptx::mbarrier_wait_parity(smem + P::kFull + 8 * stage, block / Config::kStages & 1);
    const uint64_t a =
        ptx::wgmma_descriptor_k_major_128b(smem + P::kA + stage * P::kBytesA + consumer * 64 * 128);
    const uint64_t b = ptx::wgmma_descriptor_k_major_128b(smem + P::kB + stage * P::kBytesB);
    ptx::pin_registers(sums);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Config::BLOCK_K / 16; ++step) {
      // The address field counts 16 bytes: 16 columns of K are 2.
      ptx::wgmma_16bit_t<bfloat16_t, 128>::ss<0, 0>(sums, a + 2 * step, b + 2 * step,
                                                    block != 0 || step != 0);
    }
    ptx::wgmma_commit_group();
    ptx::pin_registers(sums);
    // One group stays in flight: the stage before is free.
    ptx::wgmma_wait_group<1>();
    if (block > 0 && lane == 0) {
      ptx::mbarrier_arrive(smem + P::kEmpty + 8 * ((block - 1) % Config::kStages));
    }
  }
  ptx::wgmma_wait_group<0>();
  ptx::pin_registers(sums);
}

}  // namespace sm90_bf16_bmm_nt_detail

// Grid: (ceil(m / BLOCK_M), ceil(n / 128), g): tiles that share weights run side by side. Tensor
// maps [g, rows, columns] with boxes of 64 columns, swizzle 128B: A BLOCK_M rows, B 128, D 64.
template <typename Config>
__global__ void __launch_bounds__(Config::kThreads)
    sm90_bf16_bmm_nt(const __grid_constant__ tensor_map_t map_a,
                     const __grid_constant__ tensor_map_t map_b,
                     const __grid_constant__ tensor_map_t map_d, int k) {
  namespace detail = sm90_bf16_bmm_nt_detail;
  using P = detail::Plan<Config>;
  extern __shared__ __align__(1024) uint8_t dynamic_smem[];
  const uint32_t smem = ptx::shared_address(dynamic_smem);
  const int consumer = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int num_blocks = ceil_div(k, Config::BLOCK_K);
  const detail::place_t at{static_cast<int>(blockIdx.x) * Config::BLOCK_M,
                           static_cast<int>(blockIdx.y) * Config::BLOCK_N,
                           static_cast<int>(blockIdx.z)};

  // Initialise the ring; the fence makes it known to the TMA unit, __syncthreads to the threads.
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Config::kStages; ++stage) {
      ptx::mbarrier_init(smem + P::kFull + 8 * stage, 1);
      ptx::mbarrier_init(smem + P::kEmpty + 8 * stage, 4 * Config::kConsumers);
    }
    ptx::fence_mbarrier_init();
    ptx::prefetch_tensormap(&map_a);
    ptx::prefetch_tensormap(&map_b);
    ptx::prefetch_tensormap(&map_d);
  }
  __syncthreads();
  ptx::griddepcontrol_launch_dependents();

  if (consumer == Config::kConsumers) {
    if (lane == 0) detail::produce<Config>(smem, &map_a, &map_b, at, num_blocks);
    return;
  }
  float sums[64];
  detail::multiply<Config>(sums, smem, consumer, lane, num_blocks);

  // Rounds to bf16 and lays the rows out as the swizzled slabs that the store reads.
  const uint32_t out = smem + P::kD + consumer * 2 * P::kBytesSlab;
  const uint32_t row = 16 * warp + lane % 16;
#pragma unroll
  for (int j = 0; j < Config::BLOCK_N / 16; ++j) {
    const float* d = sums + 8 * j;
    const uint32_t chunk = (2 * j + lane / 16) % 8;
    ptx::stmatrix_x4(out + j / 4 * P::kBytesSlab + row * 128 + ((chunk ^ row % 8) << 4),
                     ptx::pack_bf16x2(d[0], d[1]), ptx::pack_bf16x2(d[2], d[3]),
                     ptx::pack_bf16x2(d[4], d[5]), ptx::pack_bf16x2(d[6], d[7]));
  }
  // The TMA unit reads what all 128 threads wrote: fence per thread, then meet.
  ptx::fence_proxy_async_shared();
  ptx::bar_sync(1 + consumer, 128);
  if (threadIdx.x % 128 == 0) {
    // What the kernel before still reads or writes of D is over; A told the tile as much already.
    ptx::griddepcontrol_wait();
#pragma unroll
    for (int slab = 0; slab < 2; ++slab) {
      ptx::tma_store_3d(&map_d, out + slab * P::kBytesSlab, at.column + 64 * slab,
                        at.row + 64 * consumer, at.batch);
    }
    ptx::bulk_commit_group();
    // Shared memory must outlive the read, and the next kernel must see the write.
    ptx::bulk_wait_group<0>();
  }
}

}  // namespace seekernel
