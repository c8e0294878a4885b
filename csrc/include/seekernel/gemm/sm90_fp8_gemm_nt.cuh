// D = A @ B^T in FP8 with block scales; tokens on the M side of wgmma, weights on the N side.
//
//   D[i, j] = sum over blocks b of 128 of K: sfa[b, i] * sfb[j / 128, b] * (A_b[i] . B_b[j])
//
// TODO
#pragma once

#include <seekernel/gemm/sm90_fp8_gemm_nt_consumer.cuh>
#include <seekernel/gemm/sm90_fp8_gemm_nt_producer.cuh>

namespace seekernel {

template <typename Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    sm90_fp8_gemm_nt(const __grid_constant__ tensor_map_t map_a,
                     const __grid_constant__ tensor_map_t map_b,
                     const __grid_constant__ tensor_map_t map_sfa,
                     const __grid_constant__ tensor_map_t map_d,
                     const __grid_constant__ sm90_fp8_gemm_nt_args_t args) {
  namespace detail = sm90_fp8_gemm_nt_detail;
  using P = detail::Plan<Config>;
  using Walker = tile_walker_t<Config::kKind,
                               Config::BLOCK_M*(Config::kMulticast == gemm_multicast::b ? 2 : 1)>;
  extern __shared__ __align__(1024) uint8_t dynamic_smem[];
  const uint32_t smem = ptx::shared_address(dynamic_smem);
  const int warpgroup = threadIdx.x / 128;
  const int n = Config::SHAPE_N != 0 ? Config::SHAPE_N : args.n;
  const int num_blocks = (Config::SHAPE_K != 0 ? Config::SHAPE_K : args.k) / Config::BLOCK_K;
  const int num_n = ceil_div(Config::kSwiglu ? n / 2 : n,
                             Config::BLOCK_N * (Config::kMulticast == gemm_multicast::a ? 2 : 1));
  const uint32_t rank = Config::kCluster == 1 ? 0 : ptx::cluster_ctarank();

  // Initialise the ring; the fence makes it known to the TMA unit, the barrier to the threads.
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Config::kStages; ++stage) {
      ptx::mbarrier_init(smem + P::kFull + 8 * stage, Config::kGather ? 129 : 1);
      ptx::mbarrier_init(smem + P::kEmpty + 8 * stage, 4 * Config::kConsumers * Config::kCluster);
    }
    ptx::fence_mbarrier_init();
    if constexpr (!Config::kGather) {
      ptx::prefetch_tensormap(&map_a);
      ptx::prefetch_tensormap(&map_sfa);
    }
    ptx::prefetch_tensormap(&map_b);
    if constexpr (Config::kOutput != gemm_output::fp32) ptx::prefetch_tensormap(&map_d);
  }
  if constexpr (Config::kCluster == 1) {
    __syncthreads();
  } else {
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
  }
  ptx::griddepcontrol_launch_dependents();

  const auto walk = [&] {
    return Walker(args.tiles, num_n, blockIdx.x / Config::kCluster, gridDim.x / Config::kCluster);
  };
  tile_t tile;
  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<Config::kProducerRegisters>();
    if constexpr (Config::kGather) {
      ptx::griddepcontrol_wait();
      Walker walker = walk();
      if (walker.next(tile)) {
        detail::GatherProducer<Config>{smem, rank, &map_b}.run(walker, tile, args, n, num_blocks);
      }
    } else if (threadIdx.x < 32) {
      using Producer = detail::Producer<Config>;
      if constexpr (!Producer::kKnowsTiles) ptx::griddepcontrol_wait();
      Walker walker = walk();
      if (walker.next(tile)) {
        Producer{smem, rank, &map_a, &map_b, &map_sfa}.run(walker, tile, n, num_blocks,
                                                           threadIdx.x == 0);
      }
    }
  } else {
    ptx::setmaxnreg_inc<Config::kConsumerRegisters>();
    ptx::griddepcontrol_wait();
    const int lane = threadIdx.x % 32;
    const detail::Consumer<Config> self{args,
                                        {args, &map_d, smem, lane},
                                        smem,
                                        rank,
                                        n,
                                        num_blocks,
                                        warpgroup - 1,
                                        static_cast<int>(threadIdx.x / 32 % 4),
                                        lane};
    Walker walker = walk();
    if (walker.next(tile)) {
      if constexpr (Config::kWaves == 1) {
        self.run_two_banks(walker, tile);
      } else {
        self.run_two_waves(walker, tile);
      }
    }
    // Shared memory must outlive the reads of the stores, and the next kernel must see the writes.
    if (Config::kOutput != gemm_output::fp32 && lane == 0) ptx::bulk_wait_group<0>();
  }
  if constexpr (Config::kCluster > 1) {
    // The other CTA may still copy to this one, or arrive here.
    __syncwarp();
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
  }
}

}  // namespace seekernel
