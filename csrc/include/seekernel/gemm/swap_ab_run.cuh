// The body of the swapAB kernels: set-up, the two roles, and the switch on the number of tokens.
#pragma once

#include <seekernel/gemm/swap_ab_consumer.cuh>

namespace seekernel::swap_ab_detail {

template <int kN, typename Config, typename Epilogue>
SEEKERNEL_DEVICE void compute_tile(const Consumer<Config>& self, const Epilogue& epilogue,
                                   const tile_t& tile, slot_t& slot, int num_blocks) {
  if constexpr (kN <= Config::kMaxTokens) {
    float total[Config::kHalves][kN / 2] = {};
    self.template multiply<kN>(total, slot, num_blocks);
    if (self.splits == 1) return epilogue.template finish<kN>(self, total, tile);
    self.template publish<kN>(total);
  }
}

template <typename Config, typename Epilogue>
SEEKERNEL_DEVICE void compute_tile(const Consumer<Config>& self, const Epilogue& epilogue,
                                   const tile_t& tile, slot_t& slot, int num_blocks) {
  switch (swap_ab_columns(tile.rows)) {
    case 8:
      return compute_tile<8>(self, epilogue, tile, slot, num_blocks);
    case 16:
      return compute_tile<16>(self, epilogue, tile, slot, num_blocks);
    case 24:
      return compute_tile<24>(self, epilogue, tile, slot, num_blocks);
    case 32:
      return compute_tile<32>(self, epilogue, tile, slot, num_blocks);
    case 48:
      return compute_tile<48>(self, epilogue, tile, slot, num_blocks);
    case 64:
      return compute_tile<64>(self, epilogue, tile, slot, num_blocks);
    case 96:
      return compute_tile<96>(self, epilogue, tile, slot, num_blocks);
    default:
      return compute_tile<128>(self, epilogue, tile, slot, num_blocks);
  }
}

template <typename Config, int kKind, typename Epilogue>
SEEKERNEL_DEVICE void run(const tensor_map_t* map_a, const tensor_map_t* map_b,
                          const swap_ab_args_t& args, const Epilogue& epilogue) {
  extern __shared__ __align__(1024) uint8_t dynamic_smem[];
  const uint32_t smem = ptx::shared_address(dynamic_smem);
  const int warpgroup = static_cast<int>(threadIdx.x / 128), lane = threadIdx.x % 32;
  const int splits = static_cast<int>(ptx::cluster_nctarank());

  if (threadIdx.x == 32) {
    if constexpr (!Config::kInt4) ptx::prefetch_tensormap(map_b);
    ptx::prefetch_tensormap(map_a);
  }
  if (threadIdx.x == 0) init_barriers<Config>(smem, args.num_stages);
  __syncthreads();
  ptx::griddepcontrol_launch_dependents();

  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<Config::kProducerRegisters>();
    const Producer<Config, kKind> producer{args, Plan<Config>(args), k_slice_t(args.k), smem, lane};
    if (threadIdx.x / 32 == 0) {
      if constexpr (Config::kInt4) {
        producer.bring_int4_weights();
      } else {
        producer.bring_weights(map_b);
      }
    }
    if (threadIdx.x / 32 == 1) producer.bring_tokens(map_a);
    __syncwarp();
    if (splits > 1) {
      cluster_sync();
      cluster_sync();
    }
  } else {
    ptx::setmaxnreg_inc<Config::kConsumerRegisters>();
    const Consumer<Config> self{smem,
                                Plan<Config>(args),
                                args.num_stages,
                                warpgroup - 1,
                                static_cast<int>(threadIdx.x / 32 % 4),
                                lane,
                                static_cast<int>(threadIdx.x % 128),
                                static_cast<int>(ptx::cluster_ctarank()),
                                splits};
    const k_slice_t slice(args.k);
    ptx::griddepcontrol_wait();
    auto tiles = walk<Config, kKind>(args);
    tile_t tile;
    slot_t slot;
    bool any = false;
    while (tiles.next(tile)) {
      any = true;
      compute_tile(self, epilogue, tile, slot, slice.end - slice.begin);
      // Groups of 8 tokens go round the cluster.
      if (splits > 1) epilogue.finish_split(self, tile, self.rank, splits);
    }
    // Shared memory must outlive all reads of it, and the next kernel must see the writes.
    ptx::bulk_wait_group<0>();
    if (splits > 1) {
      if (!any) cluster_sync();
      cluster_sync();
    }
  }
}

}  // namespace seekernel::swap_ab_detail
