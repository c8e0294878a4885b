// Compile-time choices of sm90_fp8_gemm_nt and its plan of shared memory.
#pragma once

#include <seekernel/ptx/shared_vector.cuh>
#include <seekernel/ptx/types.cuh>
#include <seekernel/scheduler/tiles.cuh>

namespace seekernel {

namespace gemm_output {
constexpr int bf16 = 0, fp32 = 1, swiglu_e4m3 = 2;
}
namespace gemm_multicast {
constexpr int none = 0, a = 1, b = 2;
}

// SHAPE_N and SHAPE_K of 0 mean: at run time.
template <int SHAPE_N_, int SHAPE_K_, int BLOCK_M_, int BLOCK_N_, int kStages_, int kKind_,
          int kOutput_, int kMulticast_, int kGather_, int kPingPong_ = 0>
struct sm90_fp8_gemm_nt_config {
  static constexpr int SHAPE_N = SHAPE_N_, SHAPE_K = SHAPE_K_;
  static constexpr int BLOCK_M = BLOCK_M_, BLOCK_N = BLOCK_N_, BLOCK_K = 128;
  static constexpr int kStages = kStages_, kKind = kKind_, kOutput = kOutput_;
  static constexpr int kMulticast = kMulticast_;
  static constexpr bool kGather = kGather_ != 0;
  // Each of two consumer warpgroups has tiles of its own.
  static constexpr bool kPingPong = kPingPong_ != 0;

  static constexpr bool kSwiglu = kOutput == gemm_output::swiglu_e4m3;
  static constexpr int kCluster = kMulticast == gemm_multicast::none ? 1 : 2;
  static constexpr int kConsumers = BLOCK_M == 64 && !kPingPong ? 1 : 2;
  static constexpr int kConsumersPerTile = kPingPong ? 1 : kConsumers;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  // Products of 64 rows x BLOCK_N that a consumer warpgroup owns: two halves of its rows, or the
  // gate's and the up projection's columns.
  static constexpr int kWaves = BLOCK_M == 256 || kSwiglu ? 2 : 1;
  // Tiles of B in a stage.
  static constexpr int kTilesB = kSwiglu ? 2 : 1;
  // Of 64 K registers: 128 * 40 + 256 * 232, or with a gathering warpgroup 128 * 56 + 256 * 224;
  // one consumer alone takes what a thread can have.
  static constexpr int kProducerRegisters = kGather ? 56 : 40;
  static constexpr int kConsumerRegisters = kConsumers == 1 ? 248 : kGather ? 224 : 232;
  // Columns of D that lie together in shared memory: at most 128 bytes, the span of the swizzle.
  static constexpr int kSlab = kSwiglu ? 128 : BLOCK_N < 64 ? BLOCK_N : 64;

  static_assert(BLOCK_M == 64 || BLOCK_M == 128 || BLOCK_M == 256, "one or two consumers");
  static_assert(BLOCK_N % 16 == 0 && 128 % BLOCK_N == 0, "a tile lies in one row of sfb");
  static_assert(SHAPE_K % BLOCK_K == 0, "k is a multiple of 128");
  static_assert(kStages >= 2, "the ring overlaps copy and product");
  static_assert(!kSwiglu || (BLOCK_N == 128 && BLOCK_M <= 128), "a scale is that of 128 columns");
  static_assert(!kPingPong || (BLOCK_M == 64 && !kSwiglu && !kGather), "a warpgroup has 64 rows");
  static_assert(!kGather || kMulticast != gemm_multicast::a, "gathered rows are not multicast");
  static_assert(!kGather || kKind != tile_kind::batched, "gathered rows are one matrix");
  static_assert(kKind != tile_kind::contiguous ||
                    BLOCK_M * (kMulticast == gemm_multicast::b ? 2 : 1) <= 128,
                "groups start at multiples of 128");
};

namespace sm90_fp8_gemm_nt_detail {

// Byte offsets in dynamic shared memory. csrc/heuristics/gemm.cpp computes the same total.
template <typename Config>
struct Plan {
  static constexpr uint32_t kBytesA = Config::BLOCK_M * Config::BLOCK_K;
  static constexpr uint32_t kBytesTileB = Config::BLOCK_N * Config::BLOCK_K;
  static constexpr uint32_t kBytesB = Config::kTilesB * kBytesTileB;
  // Scales of A in boxes of up to 128 rows. TMA takes an innermost coordinate that is a multiple of
  // 16 bytes and a tile starts at any row, so a box starts up to three rows early: four more
  // floats.
  static constexpr int kScaleBoxes = Config::BLOCK_M == 256 ? 2 : 1;
  static constexpr int kScaleBoxRows = Config::BLOCK_M / kScaleBoxes + 4;
  static constexpr uint32_t kBytesScaleBox = (kScaleBoxRows * 4 + 127) / 128 * 128;
  static constexpr uint32_t kBytesScaleA = kScaleBoxes * kBytesScaleBox;
  // What TMA brings into one CTA's stage; cp.async counts for itself.
  static constexpr uint32_t kBytesStage =
      kBytesB + (Config::kGather ? 0 : kBytesA + kScaleBoxes * kScaleBoxRows * 4);
  static constexpr uint32_t kBytesRowD = Config::kOutput == gemm_output::bf16 ? Config::BLOCK_N * 2
                                         : Config::kSwiglu                    ? 128
                                                                              : 0;
  static constexpr uint32_t kBytesD = Config::BLOCK_M * (Config::kPingPong ? 2 : 1) * kBytesRowD;

  static constexpr uint32_t kA = 0;
  static constexpr uint32_t kB = kA + Config::kStages * kBytesA;
  static constexpr uint32_t kD = kB + Config::kStages * kBytesB;
  static constexpr uint32_t kScaleA = kD + kBytesD;
  static constexpr uint32_t kTile = kScaleA + Config::kStages * kBytesScaleA;
  static constexpr uint32_t kFull = kTile + 16 * Config::kStages;
  static constexpr uint32_t kEmpty = kFull + 8 * Config::kStages;
  static constexpr uint32_t kDone = kEmpty + 8 * Config::kStages;
  static constexpr uint32_t kBytes = kDone + (Config::kPingPong ? 16 : 0);
};

// A position in the ring of stages: which slot, and the parity of its phase.
template <int kStages>
struct ring_t {
  uint32_t stage = 0, parity = 0;
  SEEKERNEL_DEVICE void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  SEEKERNEL_DEVICE void skip(uint32_t count) {
    stage += count;
    parity ^= stage / kStages & 1;
    stage %= kStages;
  }
};

// The tile of a stage, written by the producer for the consumers: row, rows, n_block, group. No
// rows mean that there are no tiles any more.
template <typename Config>
SEEKERNEL_DEVICE void write_tile(uint32_t smem, uint32_t stage, const tile_t& tile) {
  ptx::store_shared_b128(smem + Plan<Config>::kTile + 16 * stage,
                         make_uint4(tile.row, tile.rows, tile.n_block, tile.group));
}

template <typename Config>
SEEKERNEL_DEVICE tile_t read_tile(uint32_t smem, uint32_t stage) {
  const uint4 words = ptx::load_shared_b128(smem + Plan<Config>::kTile + 16 * stage);
  constexpr bool kBatches =
      Config::kKind == tile_kind::batched || Config::kKind == tile_kind::masked;
  const int group = static_cast<int>(words.w);
  return {static_cast<int>(words.x), static_cast<int>(words.y), static_cast<int>(words.z),
          kBatches ? group : 0, group};
}

// Where a CTA stands in a tile of its cluster.
template <typename Config>
struct part_t {
  int row, rows, column;  // rows may be 0 or less, and column beyond n: such a part is empty

  SEEKERNEL_DEVICE part_t(const tile_t& tile, uint32_t rank)
      : row(tile.row), rows(tile.rows), column(tile.n_block * Config::BLOCK_N) {
    if constexpr (Config::kMulticast == gemm_multicast::b) {
      row += static_cast<int>(rank) * Config::BLOCK_M;
      rows -= static_cast<int>(rank) * Config::BLOCK_M;
    } else if constexpr (Config::kMulticast == gemm_multicast::a) {
      column = (2 * tile.n_block + static_cast<int>(rank)) * Config::BLOCK_N;
    }
    rows = min(rows, Config::BLOCK_M);
  }
};

}  // namespace sm90_fp8_gemm_nt_detail
}  // namespace seekernel
