#include "heuristics/gemm.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace seekernel::heuristics {
namespace {

constexpr int kBlockK = 128;
constexpr int kMaxStages = 8;
constexpr int kMinStages = 3;

// Cost model, in SM cycles; include/seekernel/gemm/README.md has the reasoning.
// A wgmma m64nNk128 takes 2 * N cycles. Two banks keep the tensor cores busy through promotion; one
// bank leaves it to the other warpgroup.
constexpr double kTwoBankEfficiency = 0.85;
constexpr double kOneBankEfficiency = 0.80;
// What L2 gives one SM.
constexpr double kBytesPerCycle = 40.0;
// The first tile's fill of the ring; after each tile, what the next one's products do not cover.
constexpr double kFillCycles = 1700.0;
constexpr double kTwoBankTailCycles = 200.0;
constexpr double kOneBankTailCycles = 700.0;

constexpr int kWideM[] = {64, 128, 256};
constexpr int kWideN[] = {16, 32, 64, 128};
constexpr int kSwapM[] = {8, 16, 24, 32, 48, 64, 96};
constexpr int kSwapN[] = {64, 128};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int round_up(int a, int b) { return (a + b - 1) / b * b; }

bool contains(const int* begin, const int* end, int value) {
  return std::find(begin, end, value) != end;
}

void require(bool condition, const char* name, const char* expected, int64_t got) {
  if (condition) return;
  throw std::invalid_argument(std::string("gemm config: ") + name + ": expected " + expected +
                              ", got " + std::to_string(got));
}

// The deepest ring that fits, at most kMaxStages; 0 if even kMinStages does not.
int most_stages(GemmConfig config, int64_t k, const Gpu& gpu) {
  for (int stages = kMaxStages; stages >= kMinStages; --stages) {
    config.num_stages = stages;
    if (resources(config, k).shared_bytes <= gpu.shared_bytes) return stages;
  }
  return 0;
}

// Products of 64 x block_n that share a stage and a bank of sums.
int num_waves(const GemmConfig& config) {
  return config.block_m == 256 || config.output == GemmOutput::kSwigluFp8 ? 2 : 1;
}

// Tiles that CTAs or clusters take, and columns of D, in blocks.
struct Blocks {
  double rows, columns;
};
Blocks blocks(const GemmConfig& config, const GemmShape& shape) {
  const int64_t columns = config.output == GemmOutput::kSwigluFp8 ? shape.n / 2 : shape.n;
  const int m = config.block_m * (config.multicast == GemmMulticast::kB ? 2 : 1);
  const int n = config.block_n * (config.multicast == GemmMulticast::kA ? 2 : 1);
  return {static_cast<double>(ceil_div(shape.m, m)) * shape.num_groups,
          static_cast<double>(ceil_div(columns, n))};
}

double wide_cost(const GemmConfig& config, const GemmShape& shape, const Gpu& gpu) {
  const Blocks count = blocks(config, shape);
  const int at_once = std::max(1, gpu.num_sms / cluster_size(config));
  const double waves = std::max(1.0, std::ceil(count.rows * count.columns / at_once));
  const int gate_up = config.output == GemmOutput::kSwigluFp8 ? 2 : 1;
  const bool two_banks = num_waves(config) == 1;
  const double efficiency = two_banks ? kTwoBankEfficiency : kOneBankEfficiency;
  const double tensor = config.block_m / 64 * 2.0 * config.block_n * gate_up / efficiency;
  // A multicast operand is fetched once by two CTAs.
  const double rows_a = config.block_m / (config.multicast == GemmMulticast::kA ? 2.0 : 1.0);
  const double rows_b =
      config.block_n * gate_up / (config.multicast == GemmMulticast::kB ? 2.0 : 1.0);
  const double copy = (rows_a + rows_b) * kBlockK / kBytesPerCycle;
  const double tail = two_banks ? kTwoBankTailCycles : kOneBankTailCycles;
  return kFillCycles + waves * (shape.k / kBlockK * std::max(tensor, copy) + tail);
}

double swap_cost(const GemmConfig& config, const GemmShape& shape, const Gpu& gpu) {
  const double tiles = static_cast<double>(ceil_div(shape.m, config.block_m)) *
                       ceil_div(shape.n, config.block_n) * shape.num_groups;
  const double waves = std::max(1.0, std::ceil(tiles / gpu.num_sms));
  const double tensor = config.block_n / 64 * 2.0 * config.block_m / kTwoBankEfficiency;
  const double copy = (config.block_m + config.block_n) * kBlockK / kBytesPerCycle;
  return waves * (shape.k / kBlockK * std::max(tensor, copy) + kFillCycles);
}

// What the kernel's static assertions ask for, and shapes for which sharing is a waste.
bool known_wide(const GemmConfig& config) {
  if (!contains(std::begin(kWideM), std::end(kWideM), config.block_m) ||
      !contains(std::begin(kWideN), std::end(kWideN), config.block_n)) {
    return false;
  }
  const bool swiglu = config.output == GemmOutput::kSwigluFp8;
  if (config.block_m == 256 && (swiglu || config.block_n != 128)) return false;
  if (swiglu && config.block_n != 128) return false;
  if (config.ping_pong && (config.block_m != 64 || swiglu || config.gather)) return false;
  if (config.gather && config.multicast == GemmMulticast::kA) return false;
  if (config.gather && config.kind == TileKind::kBatched) return false;
  const int rows = config.block_m * (config.multicast == GemmMulticast::kB ? 2 : 1);
  return config.kind != TileKind::kContiguous || rows <= 128;
}

}  // namespace

int cluster_size(const GemmConfig& config) {
  return config.multicast == GemmMulticast::kNone ? 1 : 2;
}

int num_ctas(const GemmConfig& config, const GemmShape& shape, const Gpu& gpu) {
  const int cluster = cluster_size(config), at_once = std::max(1, gpu.num_sms / cluster);
  const bool known = config.kind == TileKind::kDense || config.kind == TileKind::kBatched;
  if (!known) return at_once * cluster;
  const Blocks count = blocks(config, shape);
  return cluster *
         static_cast<int>(std::max(1.0, std::min<double>(count.rows * count.columns, at_once)));
}

GemmRaster raster(const GemmConfig& config, const GemmShape& shape, const Gpu& gpu) {
  GemmRaster best;
  double least = std::numeric_limits<double>::infinity();
  const Blocks count = blocks(config, shape);
  const int cluster = cluster_size(config);
  const double at_once = std::max(1, gpu.num_sms / cluster);
  const double rows = config.block_m * (config.multicast == GemmMulticast::kB ? 2.0 : 1.0);
  const double columns = config.block_n * (config.multicast == GemmMulticast::kA ? 2.0 : 1.0) *
                         (config.output == GemmOutput::kSwigluFp8 ? 2 : 1);
  for (const bool band_n : {false, true}) {
    // A group's rows come in bands: they are few, and its weights are to be read once.
    if (shape.grouped && band_n) continue;
    for (const int band : {8, 16}) {
      const double across = std::min<double>(band, band_n ? count.columns : count.rows);
      const double along = std::ceil(at_once / across);
      const double read =
          band_n ? across * columns + along * rows : across * rows + along * columns;
      if (read < least) least = read, best = {band, band_n};
    }
  }
  return best;
}

GemmResources resources(const GemmConfig& config, int64_t k) {
  GemmResources result;
  if (config.swap_ab) {
    const int consumers = config.block_n / 64;
    const int stage =
        (config.block_m + config.block_n) * kBlockK + round_up(config.block_m * 4, 128);
    result.num_threads = 128 * (1 + consumers);
    result.shared_bytes = config.num_stages * (stage + 2 * 8) +
                          config.block_m * config.block_n * 2 + 4 * static_cast<int>(k / kBlockK);
    result.consumer_registers = 3 * config.block_m / 2 + 40;
    result.consumer_register_limit = consumers == 1 ? 248 : 232;
    return result;
  }
  const bool swiglu = config.output == GemmOutput::kSwigluFp8;
  const int consumers = config.block_m == 64 && !config.ping_pong ? 1 : 2;
  const int scale_boxes = config.block_m == 256 ? 2 : 1;
  // A box of scales may start three rows early; slots of shared memory are multiples of 128 bytes.
  const int bytes_scales = scale_boxes * round_up((config.block_m / scale_boxes + 4) * 4, 128);
  constexpr int kBytesTile = 16;
  const int stage =
      (config.block_m + config.block_n * (swiglu ? 2 : 1)) * kBlockK + bytes_scales + kBytesTile;
  const int row_d = swiglu ? 128 : config.output == GemmOutput::kFloat32 ? 0 : 2 * config.block_n;
  result.num_threads = 128 * (1 + consumers);
  result.shared_bytes = config.num_stages * (stage + 2 * 8) +
                        config.block_m * row_d * (config.ping_pong ? 2 : 1) +
                        (config.ping_pong ? 16 : 0);
  // 64 x block_n over 128 threads, three times: final sums and two banks of partial ones, or two
  // sets of final sums and one bank; and about 32 more.
  result.consumer_registers = 3 * config.block_n / 2 + 32;
  result.consumer_register_limit = consumers == 1 ? 248 : config.gather ? 224 : 232;
  return result;
}

bool fits(const GemmConfig& config, const GemmShape& shape, const Gpu& gpu) {
  const bool known = config.swap_ab
                         ? contains(std::begin(kSwapM), std::end(kSwapM), config.block_m) &&
                               contains(std::begin(kSwapN), std::end(kSwapN), config.block_n)
                         : known_wide(config);
  if (!known || config.num_stages < kMinStages || config.num_stages > kMaxStages) return false;
  const GemmResources need = resources(config, shape.k);
  return need.shared_bytes <= gpu.shared_bytes &&
         need.consumer_registers <= need.consumer_register_limit;
}

bool prefers_swap(const GemmShape& shape, const Gpu& gpu) {
  constexpr int kH20Sms = 78;
  return shape.m < (shape.grouped && gpu.num_sms == kH20Sms ? 64 : 32);
}

GemmConfig choose(const GemmShape& shape, const Gpu& gpu, bool allow_swap,
                  const std::vector<TunedRow>& tuned) {
  require(shape.m >= 1, "m", "at least 1", shape.m);
  require(shape.n >= 8 && shape.n % 8 == 0, "n", "a positive multiple of 8", shape.n);
  require(shape.k >= kBlockK && shape.k % kBlockK == 0, "k", "a positive multiple of 128", shape.k);
  require(shape.k <= 1 << 20, "k", "at most 1048576", shape.k);
  require(shape.num_groups >= 1, "num_groups", "at least 1", shape.num_groups);
  require(shape.output != GemmOutput::kSwigluFp8 || shape.n % 256 == 0, "n",
          "a multiple of 256 for gate and up", shape.n);
  require(!shape.gather || shape.kind != TileKind::kBatched, "gather",
          "one matrix of tokens, not a batch", static_cast<int>(shape.kind));
  require(gpu.num_sms >= 1, "num_sms", "at least 1", gpu.num_sms);

  for (const TunedRow& row : tuned) {
    if (row.num_sms == gpu.num_sms && row.n == shape.n && row.k == shape.k &&
        row.grouped == shape.grouped && row.m_min <= shape.m && shape.m <= row.m_max &&
        (allow_swap || !row.config.swap_ab) && row.config.kind == shape.kind &&
        row.config.output == shape.output && row.config.gather == shape.gather &&
        fits(row.config, shape, gpu)) {
      return row.config;
    }
  }

  const bool swap = allow_swap && prefers_swap(shape, gpu);
  GemmConfig best;
  double best_cost = std::numeric_limits<double>::infinity();
  const auto consider = [&](int block_m, int block_n, GemmMulticast multicast) {
    GemmConfig config{swap, block_m, block_n, 0, multicast, shape.kind, shape.output, shape.gather};
    config.num_stages = most_stages(config, shape.k, gpu);
    if (!fits(config, shape, gpu)) return;
    const double price = swap ? swap_cost(config, shape, gpu) : wide_cost(config, shape, gpu);
    if (price < best_cost) best = config, best_cost = price;
  };
  if (swap) {
    // The smallest token tile that holds all tokens: weights are then read once.
    int block_m = *(std::end(kSwapM) - 1);
    for (int size : kSwapM) {
      if (size >= shape.m) {
        block_m = size;
        break;
      }
    }
    for (int block_n : kSwapN) consider(block_m, block_n, GemmMulticast::kNone);
  } else {
    // Half-filled pairs are counted by the cost; a single wave has nothing to share for long.
    for (int block_m : kWideM) {
      for (int block_n : kWideN) {
        consider(block_m, block_n, GemmMulticast::kNone);
        const GemmConfig alone{false, block_m, block_n};
        const Blocks count = blocks(alone, shape);
        if (block_m < 128 || block_n < 128 || count.rows * count.columns <= gpu.num_sms) continue;
        consider(block_m, block_n, GemmMulticast::kA);
        if (!shape.grouped) consider(block_m, block_n, GemmMulticast::kB);
      }
    }
  }
  require(best.num_stages > 0, "shared memory", "room for three stages", gpu.shared_bytes);
  return best;
}

}  // namespace seekernel::heuristics
