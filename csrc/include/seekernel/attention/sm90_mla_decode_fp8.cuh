// sm90_mla_decode over an FP8 cache: keys are expanded to bf16 on their way into shared memory.
//
// Formats: blocks [num_pages, page_size, 656 bytes]: 512 e4m3 codes, 4 fp32 multipliers (of 128
// codes
//   each), 64 bf16 rope values; flat [num_pages, page_size, 576] e4m3, all times kv_scale [1],
//   which is left out of the keys and goes into the scores' scale and the result: the codes are
//   exact in bf16. So are those of blocks where multipliers are powers of two; others are rounded
//   to bf16.
// Roles: warpgroups 0 and 1 as in sm90_mla_decode. Warpgroup 2 reads rows in pieces of 16 bytes (a
//   warp 16 keys, 8 lanes side by side in rows, so that stores into the swizzled tiles meet no bank
//   twice), expands and stores them; its loads run half a block ahead, across items. Q comes
//   by TMA, which the first thread of warpgroup 0 drives. Keys behind the last one are written as
//   zeros.
// Expansion: the seven magnitude bits of a code put at bits 4 to 10 of a bf16 are its value *
// 2^-120,
//   subnormals too; a packed product with 2^120 * multiplier follows. NaN codes are patched.
// Protocol: as sm90_mla_decode, but full[buffer][tile] takes the four warps of warpgroup 2.
// Bound: tensor cores from about 80 rows a request, memory below.
#pragma once

#include <seekernel/attention/sm90_mla_decode_consumer.cuh>
#include <seekernel/ptx/bf16x2.cuh>
#include <seekernel/ptx/global_memory.cuh>

namespace seekernel {

enum class latent_format_t : int32_t { kBlocks, kFlat };

// The cache, in bytes.
struct mla_fp8_cache_t {
  const uint8_t* data;
  int64_t stride_page, stride_row;
  const float* kv_scale;  // of the flat format
};

namespace sm90_mla_decode_detail {

// Four e4m3 codes as four bf16 times `scale` (both halves the same, 2^120 included).
SEEKERNEL_DEVICE uint2 expand_e4m3(uint32_t codes, uint32_t scale) {
  uint32_t pairs[2] = {__byte_perm(codes, 0, 0x1404), __byte_perm(codes, 0, 0x3424)};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    pairs[i] = (pairs[i] & 0x80008000u) | (pairs[i] >> 4 & 0x07F007F0u);
    pairs[i] = ptx::mul_bf16x2(pairs[i], scale);
  }
  return make_uint2(pairs[0], pairs[1]);
}

// Bit 7 of every byte whose low seven bits are ones: NaN.
SEEKERNEL_DEVICE uint32_t nan_codes(uint32_t codes) {
  return ((codes & 0x7F7F7F7Fu) + 0x01010101u) & 0x80808080u;
}

// Walks the blocks of all units of a part.
struct block_walk_t {
  SEEKERNEL_DEVICE block_walk_t(const mla_part_t* parts, const mla_item_t* items)
      : work(parts, items, blockIdx.y) {
    unit.begin = unit.end = 0;
    block = -1;
  }
  SEEKERNEL_DEVICE bool next() {
    ++block;
    while (block >= unit.end) {
      if (!work.next(unit)) return false;
      block = rows_of_cta(unit.item) > 0 ? unit.begin : unit.end;
    }
    return true;
  }
  mla_work_t work;
  mla_unit_t unit;
  int block;
};

// The warpgroup that expands keys. A thread takes keys 16 warp + lane % 8 and 8 further of a block,
// and of a 64-byte piece of their codes the bytes from 16 * (lane / 8).
template <latent_format_t kFormat>
struct Expander {
  using P = Plan;
  static constexpr bool kBlocks = kFormat == latent_format_t::kBlocks;
  static constexpr int kRopeLoads = kBlocks ? 4 : 2;
  static constexpr int kLoads = kRopeLoads + 2 * kValueTiles;  // of 16 bytes, per thread and block
  static constexpr int kAhead = kLoads / 2;
  static constexpr uint32_t kBias = 0x7B807B80u;  // 2^120 twice

  // Pages of the thread's two keys of a block; negative where the key is dead.
  SEEKERNEL_DEVICE void look_up(int (&pages)[2], const block_walk_t& walk) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = walk.block * kMlaBlockKeys + 16 * warp + 8 * half + lane % 8;
      pages[half] = -1;
      if (key < walk.unit.item.seq_len) {
        pages[half] = block_table[walk.unit.item.request * stride_table + key / page_size];
      }
    }
  }

  // Where the thread reads its two keys; null where the key is dead.
  SEEKERNEL_DEVICE void locate(const uint8_t* (&rows)[2], const int (&pages)[2], int block) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = block * kMlaBlockKeys + 16 * warp + 8 * half + lane % 8;
      rows[half] = pages[half] < 0 ? nullptr
                                   : cache.data + pages[half] * cache.stride_page +
                                         key % page_size * cache.stride_row + 16 * (lane / 8);
    }
  }

  // Load i of a block: rope first, then tile by tile; even ones of the first key, odd ones of the
  // second.
  SEEKERNEL_DEVICE static uint4 load(const uint8_t* const (&rows)[2], int i) {
    const uint8_t* row = rows[i % 2];
    if (row == nullptr) return make_uint4(0, 0, 0, 0);
    const int rope = kBlocks ? 512 + 16 + i / 2 * 64 : 512;
    return ptx::load_global_b128(row + (i < kRopeLoads ? rope : (i - kRopeLoads) / 2 * 64));
  }

  SEEKERNEL_DEVICE void load_scales(float4 (&scales)[2], const uint8_t* const (&rows)[2]) const {
    if constexpr (kBlocks) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        scales[half] =
            rows[half] == nullptr
                ? make_float4(0.0f, 0.0f, 0.0f, 0.0f)
                : __ldg(reinterpret_cast<const float4*>(rows[half] + 512 - 16 * (lane / 8)));
      }
    }
  }

  // Eight bf16 of the thread's first or second key, at column `chunk` * 8 of a tile.
  SEEKERNEL_DEVICE void store(uint32_t tile, int half, int chunk, const uint4& values) const {
    const uint32_t row = 16 * warp + 8 * half + lane % 8;
    ptx::store_shared_b128(tile + row * 128 + 16 * (chunk ^ row % 8), values);
  }

  SEEKERNEL_DEVICE void store_codes(uint32_t tile, int half, const uint4& codes,
                                    uint32_t scale) const {
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
    uint32_t nan = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint2 low = expand_e4m3(words[2 * i], scale);
      const uint2 high = expand_e4m3(words[2 * i + 1], scale);
      store(tile, half, 2 * (lane / 8) + i, make_uint4(low.x, low.y, high.x, high.y));
      nan |= nan_codes(words[2 * i]) | nan_codes(words[2 * i + 1]);
    }
    if (nan != 0) store_nans(tile, half, words);
  }

  // Overwrites the values of NaN codes.
  SEEKERNEL_DEVICE void store_nans(uint32_t tile, int half, const uint32_t (&words)[4]) const {
    const uint32_t row = 16 * warp + 8 * half + lane % 8;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (nan_codes(words[i / 4]) >> (8 * (i % 4)) & 0x80u) {
        const uint32_t chunk = 2 * (lane / 8) + i / 8;
        ptx::store_shared_u16(tile + row * 128 + 16 * (chunk ^ row % 8) + 2 * (i % 8), 0x7FFF);
      }
    }
  }

  SEEKERNEL_DEVICE void run(const mla_part_t* parts, const mla_item_t* items) const {
    block_walk_t walk(parts, items);
    const uint8_t* rows[2];
    int pages[2];
    float4 scales[2];
    uint4 ring[kAhead];
    bool live = walk.next();
    if (!live) return;
    look_up(pages, walk);
    locate(rows, pages, walk.block);
    load_scales(scales, rows);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) ring[i] = load(rows, i);
    for (uint32_t counter = 0; live; ++counter) {
      uint32_t scale[2][2];  // multipliers of tiles 0 to 3, of tiles 4 to 7, two in each
      if constexpr (kBlocks) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float bias = __uint_as_float(kBias & 0xFFFF0000u);
          scale[half][0] = ptx::pack_bf16x2(scales[half].x * bias, scales[half].y * bias);
          scale[half][1] = ptx::pack_bf16x2(scales[half].z * bias, scales[half].w * bias);
        }
      }
      live = walk.next();
      pages[0] = pages[1] = -1;
      if (live) look_up(pages, walk);

      const uint32_t buffer = counter & 1, parity = (counter >> 1 & 1) ^ 1;
      const uint32_t tiles = smem + P::kKv + buffer * kTiles * kTileBytes;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int tile = i < kRopeLoads ? 8 : (i - kRopeLoads) / 2;
        const bool opens = i == 0 || i == kRopeLoads || i == kRopeLoads + 8;
        if (opens) {
          const int part = i == 0 ? kRope : (i == kRopeLoads ? kLeft : kRight);
          ptx::mbarrier_wait_parity(smem + P::kEmpty + 8 * (3 * buffer + part), parity);
        }
        if (i == kAhead) {  // all further loads are the next block's
          locate(rows, pages, walk.block);
          load_scales(scales, rows);
        }
        const uint4 piece = ring[i % kAhead];
        ring[i % kAhead] = load(rows, (i + kAhead) % kLoads);
        if (kBlocks && i < kRopeLoads) {
          store(tiles + 8 * kTileBytes, i % 2, 4 * (i / 2) + lane / 8, piece);
        } else {
          const uint32_t both = kBlocks ? scale[i % 2][tile / 4 % 2] : kBias;
          const uint32_t one = __byte_perm(both, 0, tile / 2 % 2 == 0 ? 0x1010 : 0x3232);
          store_codes(tiles + tile * kTileBytes, i % 2, piece, one);
        }
        if (i % 2 == 1 && (i >= kRopeLoads || i == kRopeLoads - 1)) {
          ptx::fence_proxy_async_shared();
          __syncwarp();
          if (lane == 0) {
            ptx::mbarrier_arrive(smem + P::kFull + 8 * (buffer * kTiles + tile));
          }
        }
      }
    }
  }

  uint32_t smem;
  int warp, lane;
  mla_fp8_cache_t cache;
  const int32_t* block_table;
  int64_t stride_table;
  int page_size;
};

}  // namespace sm90_mla_decode_detail

// Grid, tensor map of q: as sm90_mla_decode.
template <latent_format_t kFormat>
__global__ void __launch_bounds__(384, 1)
    sm90_mla_decode_fp8(const __grid_constant__ tensor_map_t map_q,
                        const __grid_constant__ mla_fp8_cache_t cache,
                        const __grid_constant__ mla_decode_args_t<bfloat16_t> args) {
  namespace detail = sm90_mla_decode_detail;
  extern __shared__ __align__(1024) uint8_t dynamic_smem[];
  const uint32_t smem = ptx::shared_address(dynamic_smem);
  // The same in the whole warp, as the compiler must know.
  const int warpgroup = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 128, 0);
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;

  if (threadIdx.x == 0) {
    detail::init_barriers(smem, 4);
    ptx::prefetch_tensormap(&map_q);
  }
  __syncthreads();
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();

  if (warpgroup == 2) {
    ptx::setmaxnreg_dec<96>();
    const detail::Expander<kFormat> self{
        smem, warp, lane, cache, args.block_table, args.stride_table, args.page_size};
    self.run(args.parts, args.items);
  } else {
    ptx::setmaxnreg_inc<208>();
    const float kv_scale = kFormat == latent_format_t::kFlat ? *cache.kv_scale : 1.0f;
    detail::Consumer<bfloat16_t, true> self{
        smem,    warpgroup, warp, lane, thread, 16 * warp + lane / 4, args.scale_log2 * kv_scale,
        kv_scale};
    self.run(args, &map_q);
  }
}

}  // namespace seekernel
