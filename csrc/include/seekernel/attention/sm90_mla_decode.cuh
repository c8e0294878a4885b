// Absorbed MLA over a paged latent cache, for many query rows: 64 of them per CTA.
//
//   S = Q @ K^T;  P = exp2(c * (S - m));  O = sum of P @ V;  out = O / sum of P;  V = K[:, :512]
//
// Shapes: q [s * h_q, 576], kv_cache [num_pages, page_size, 576], out [s * h_q, 512] in T (bf16 or
//   fp16); lse [s * h_q] fp32. The plan (mla_decode_plan.cuh) says which rows meet which keys.
// Roles: CTA (x, y) takes rows 64 x to 64 x + 63 of every item of part y. Warpgroups 0 and 1 do the
//   arithmetic, one thread of warpgroup 2 drives TMA and runs ahead across items. The 64 x 512 sums
//   are shared by columns: warpgroup w holds columns 256 w to 256 w + 255. The blocks of 64 keys
//   alternate: of its own blocks a warpgroup computes S and P, gives P to the other one through
//   shared memory, and adds P @ V of every block, in ascending order, to its columns.
// Softmax: the maximum m_n that block n uses is m_(n-1) unless a row of it exceeds that by 8 in the
//   exponent: P is at most 2^8, and sums are hardly ever rescaled.
// Shared memory: Q in 9 tiles of 64 rows x 64 columns, K in 2 buffers of 9 such tiles, P of even
//   blocks; P of odd blocks lies in the ninth tile of Q, which is kept in registers. All swizzled
//   by 128 B. Then maxima, row sums, barriers.
// Protocol: full[buffer][tile] takes the bytes of a tile; empty[buffer][part] (left four tiles,
//   right four, rope) takes a warpgroup's four warps: left and right are the last readers' own,
//   since the scores were done before P was given away. p_full[buffer]: four warps. P needs no
//   empty: block n + 2 cannot arrive before both halves of block n were released, behind the last
//   use of its P.
// Bound: tensor cores from about 128 rows a request, memory below.
#pragma once

#include <seekernel/attention/sm90_mla_decode_consumer.cuh>

namespace seekernel {

namespace sm90_mla_decode_detail {

// One thread: loads Q and the keys of every unit, as soon as their places are free.
template <typename T>
SEEKERNEL_DEVICE void produce(uint32_t smem, const tensor_map_t* map_q, const tensor_map_t* map_kv,
                              const mla_decode_args_t<T>& args) {
  using P = Plan;
  mla_work_t work(args.parts, args.items, blockIdx.y);
  mla_unit_t unit;
  const int box_keys = min(args.page_size, kMlaBlockKeys);
  uint32_t num_blocks = 0, num_units = 0;  // so far, in all units
  while (work.next(unit)) {
    if (rows_of_cta(unit.item) <= 0 || unit.begin == unit.end) continue;
    load_q(smem, map_q, unit.item.row + kRows * blockIdx.x, num_units++);
    const int32_t* pages = args.block_table + unit.item.request * args.stride_table;
    for (int block = unit.begin; block < unit.end; ++block, ++num_blocks) {
      const uint32_t buffer = num_blocks & 1, parity = (num_blocks >> 1 & 1) ^ 1;
      const int key = block * kMlaBlockKeys;
      // Pages behind the last key are read as zeros, by an index that no page has.
      int page[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int first = key + i * box_keys;
        page[i] = i * box_keys < kMlaBlockKeys && first < unit.item.seq_len
                      ? pages[first / args.page_size]
                      : args.num_pages;
      }
      const auto load = [&](int part, int begin, int end) {
        ptx::mbarrier_wait_parity(smem + P::kEmpty + 8 * (3 * buffer + part), parity);
        for (int tile = begin; tile < end; ++tile) {
          const uint32_t slot = buffer * kTiles + tile, full = smem + P::kFull + 8 * slot;
          ptx::mbarrier_arrive_expect_tx(full, kTileBytes);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (i * box_keys >= kMlaBlockKeys) break;
            ptx::tma_load_3d(smem + P::kKv + slot * kTileBytes + i * box_keys * 128, map_kv, full,
                             64 * tile, key % args.page_size, page[i]);
          }
        }
      };
      load(kRope, 8, 9);
      load(kLeft, 0, 4);
      load(kRight, 4, 8);
    }
  }
}

}  // namespace sm90_mla_decode_detail

// Grid: (rows_per_item / 64, parts). Tensor maps: q [s * h_q, 576] boxes of 64 rows x 64 columns;
// kv [num_pages, page_size, 576] boxes of 64 columns x min(page_size, 64) keys; both swizzled by
// 128 B.
template <typename T>
__global__ void __launch_bounds__(384, 1)
    sm90_mla_decode(const __grid_constant__ tensor_map_t map_q,
                    const __grid_constant__ tensor_map_t map_kv,
                    const __grid_constant__ mla_decode_args_t<T> args) {
  namespace detail = sm90_mla_decode_detail;
  extern __shared__ __align__(1024) uint8_t dynamic_smem[];
  const uint32_t smem = ptx::shared_address(dynamic_smem);
  // The same in the whole warp, as the compiler must know.
  const int warpgroup = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 128, 0);

  if (threadIdx.x == 0) {
    detail::init_barriers(smem, 1);
    ptx::prefetch_tensormap(&map_q);
    ptx::prefetch_tensormap(&map_kv);
  }
  __syncthreads();
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();

  if (warpgroup == 2) {
    ptx::setmaxnreg_dec<24>();
    if (threadIdx.x == 256) detail::produce<T>(smem, &map_q, &map_kv, args);
  } else {
    ptx::setmaxnreg_inc<240>();
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    detail::Consumer<T, false> self{
        smem, warpgroup, warp, lane, thread, 16 * warp + lane / 4, args.scale_log2, 1.0f};
    self.run(args, nullptr);
  }
}

}  // namespace seekernel
