// D = A @ B^T in FP8 with block scales; tokens on the M side of wgmma, weights on the N side.
//
//   D[i, j] = sum over blocks b of 128 of K: sfa[b, i] * sfb[j / 128, b] * (A_b[i] . B_b[j])
//
// Dense, batched or grouped: which rows of A meet which matrix of B is scheduler/tiles.cuh's
// matter. Outputs: bf16 or fp32, each row multiplied by row_weight[i] if that is given; or, where
// the rows of B are [gate (n / 2) | up (n / 2)], e4m3(silu(gate) * up / s) with s = max(amax, 1e-4)
// / 448 per row and 128 columns (kOutput swiglu_e4m3; n is a multiple of 256).
//
// Shapes: A [batches, rows, k] e4m3, sfa [batches, k/128, >= rows] fp32, M-major; B [groups, n, k]
//   e4m3, sfb [groups, ceil(n/128), k/128] fp32; D [batches, rows, n] (swiglu: n/2 columns of e4m3,
//   and sfd [n/256, >= rows] fp32). batches is 1 but for the kinds batched and masked. k is a
//   multiple of 128, n of 8, rows anything. Rows of no group are read as neighbours of others and
//   never matter: they may hold NaN; nothing of D outside the groups' rows is written.
//
// What the host gives (csrc/heuristics/gemm.h: resources(), num_ctas(), raster()):
//   grid     num_ctas() CTAs in x, a multiple of the cluster; persistent, each walks its tiles
//   block    kThreads; cluster kCluster in x; shared memory Plan::kBytes; PDL allowed
//   map_a    bytes [k, rows, batches], box [128, BLOCK_M, 1] (half the rows if kMulticast is a),
//            swizzle 128B; rows is m for dense and batched, else all that the memory has
//   map_b    bytes [k, n, groups], box [128, BLOCK_N, 1] (half the rows if kMulticast is b),
//            swizzle 128B
//   map_sfa  fp32 [rows, k/128, batches], box [min(BLOCK_M, 128) + 4, 1, 1], no swizzle; the stride
//            of a K block is a multiple of 16 bytes
//   map_d    bf16, or bytes for e4m3, [columns, rows, batches], box [kSlab, 16, 1], swizzled by the
//            box's row of 128, 64 or 32 bytes; rows is m for dense and batched, which clips the
//            last tile, else all
//   args     sm90_fp8_gemm_nt_args.cuh
//   map_a and map_sfa are not read if kGather, map_d is not if fp32. n > 0, k >= 128, and m > 0
//   where the kind has it: an empty problem is not launched.
//
// Roles: one warp of warpgroup 0 drives TMA, or with kGather all of warpgroup 0 fetches rows of A
//   by cp.async. The one or two warpgroups behind it own 64 or 128 rows of the tile each.
// Shared memory (Plan): kStages x (A, B, sfa, tile) as the ring; D in pieces of 16 rows, one for
//   each warp and 64 rows; barriers. A, B and D are swizzled by 128 B, at multiples of 1024.
// Protocol: full[s] takes one arrival and the bytes of A, B and sfa, with kGather 128 more arrivals
//   of threads whose copies have landed and are fenced. empty[s] takes one arrival per consumer
//   warp, of both CTAs in a cluster, once it has read the scales and the wgmma that read A and B
//   have finished. The producer alone walks the tiles: it writes each stage's tile into the stage,
//   and at the end a stage without rows. The ring runs through from tile to tile; warps of a
//   warpgroup share nothing else, so they never meet at a named barrier.
// Multicast: two CTAs take neighbouring tiles of a row (kMulticast a) or column of tiles (b); each
//   fetches half of the operand that they share for both.
// Numerics: the tensor cores keep about 14 bits of a sum, so each 128 of K is summed there from
//   zero and promoted into fp32 registers, in the order of K: the bits depend on neither tile nor
//   timing.
// Overlap: BLOCK_M 64 and 128 have two banks of partial sums: block b + 1 is multiplied while block
//   b is promoted, and the next tile's first block while this tile is rounded and stored. BLOCK_M
//   256 and swiglu have two products per stage and one bank: one warpgroup multiplies while the
//   other promotes or stores. kPingPong: tiles of 64 rows go to the warpgroups in turn.
// PDL: dense and batched fetch the first stages of B before griddepcontrol.wait: weights are
//   constants. Only the producer waits: what the consumers read and write comes after its stages.
// Bound: README.md in this folder.
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
      ptx::mbarrier_init(smem + P::kEmpty + 8 * stage,
                         4 * Config::kConsumersPerTile * Config::kCluster);
    }
    ptx::fence_mbarrier_init();
    if constexpr (Config::kPingPong) {
      ptx::store_shared_f32(smem + P::kDone, 0.0f);
      ptx::store_shared_f32(smem + P::kDone + 4, 0.0f);
    }
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

  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<Config::kProducerRegisters>();
    const auto walk = [&] {
      return Walker(args.tiles, num_n, blockIdx.x / Config::kCluster, gridDim.x / Config::kCluster);
    };
    if constexpr (Config::kGather) {
      ptx::griddepcontrol_wait();
      Walker walker = walk();
      detail::GatherProducer<Config>{smem, rank, &map_b}.run(walker, args, n, num_blocks);
    } else if (threadIdx.x < 32) {
      using Producer = detail::Producer<Config>;
      if constexpr (!Producer::kKnowsTiles) ptx::griddepcontrol_wait();
      Walker walker = walk();
      Producer{smem, rank, &map_a, &map_b, &map_sfa}.run(walker, n, num_blocks, threadIdx.x == 0);
    }
  } else {
    ptx::setmaxnreg_inc<Config::kConsumerRegisters>();
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
    if constexpr (Config::kPingPong) {
      self.run_ping_pong();
    } else if constexpr (Config::kWaves == 1) {
      self.run_two_banks();
    } else {
      self.run_two_waves();
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
