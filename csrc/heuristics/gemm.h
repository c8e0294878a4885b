// Chooses the tile configuration of an FP8 GEMM from its shape and the GPU. Plain C++, no CUDA.
//
// Wide: tokens on wgmma-M. Swap: weights on wgmma-M, tokens on wgmma-N, for few tokens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace seekernel::heuristics {

struct Gpu {
  int num_sms = 132;
  int shared_bytes = 232448;  // most dynamic shared memory of one CTA on sm_90
};

// As include/seekernel/scheduler/tile_source.cuh and gemm/sm90_fp8_gemm_nt_config.cuh number them.
enum class TileKind { kDense, kBatched, kOffsets, kContiguous, kMasked, kTileMap };
enum class GemmOutput { kBfloat16, kFloat32, kSwigluFp8 };
enum class GemmMulticast { kNone, kA, kB };

// D[m, n] = A[m, k] @ B[n, k]^T. Of a grouped GEMM m is the expected number of rows per group. With
// kSwigluFp8 n counts gate and up together.
struct GemmShape {
  int64_t m = 0, n = 0, k = 0;
  int num_groups = 1;
  bool grouped = false;  // kOffsets, kContiguous, kMasked or kTileMap
  TileKind kind = TileKind::kDense;
  GemmOutput output = GemmOutput::kBfloat16;
  bool gather = false;
};

struct GemmConfig {
  bool swap_ab = false;
  int block_m = 0;  // rows of D per tile: tokens, also where swap_ab puts them on wgmma-N
  int block_n = 0;  // columns of D per tile
  int num_stages = 0;
  GemmMulticast multicast = GemmMulticast::kNone;
  // Of the problem, not chosen.
  TileKind kind = TileKind::kDense;
  GemmOutput output = GemmOutput::kBfloat16;
  bool gather = false;
  // Chosen: each of two consumer warpgroups has tiles of its own, of 64 rows.
  bool ping_pong = false;

  bool operator==(const GemmConfig&) const = default;
};

// What a configuration needs; the kernels' own Plan computes the same shared memory.
struct GemmResources {
  int num_threads = 0;
  int shared_bytes = 0;
  int consumer_registers = 0;  // estimate per thread of a consumer warpgroup
  int consumer_register_limit = 0;
};

GemmResources resources(const GemmConfig& config, int64_t k);

// CTAs of a cluster: those that share a tile of A or B.
int cluster_size(const GemmConfig& config);

// The grid of a persistent launch: as many CTAs as run at once, fewer where there are fewer tiles.
// Where the device alone knows how many rows there are, all of them.
int num_ctas(const GemmConfig& config, const GemmShape& shape, const Gpu& gpu);

// tile_source_t's band and band_n: the order of tiles in which those that run at once read least.
struct GemmRaster {
  int band = 8;
  bool band_n = false;
};
GemmRaster raster(const GemmConfig& config, const GemmShape& shape, const Gpu& gpu);

// Whether the configuration is one that the kernels are written for and fits the GPU.
bool fits(const GemmConfig& config, const GemmShape& shape, const Gpu& gpu);

// The default rule: few tokens go to the swap kernel. Dense: m < 32. Grouped: expected rows per
// group < 32, or < 64 on the 78 SMs of an H20, whose tensor cores saturate earlier.
bool prefers_swap(const GemmShape& shape, const Gpu& gpu);

// One measured choice, valid for m in [m_min, m_max] on GPUs with num_sms.
struct TunedRow {
  int num_sms = 0;
  int64_t n = 0, k = 0, m_min = 0, m_max = 0;
  bool grouped = false;
  GemmConfig config;
};

// A tuned row that applies and fits, else the fittest configuration of the cost model. Throws
// std::invalid_argument, naming the size, for a shape that no kernel takes.
GemmConfig choose(const GemmShape& shape, const Gpu& gpu, bool allow_swap,
                  const std::vector<TunedRow>& tuned = {});

}  // namespace seekernel::heuristics
