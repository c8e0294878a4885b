#include "heuristics/gemm.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace seekernel::heuristics {
namespace {

constexpr int kBlockK = 128;
constexpr int kMaxStages = 8;
constexpr int kMinStages = 3;

// Cost model, in SM cycles. A wgmma m64nNk128 takes 2 * N cycles of which about 3/4 are reached; L2
// gives an SM about 24 bytes a cycle (5.5 TB/s over 132 SMs at 1.75 GHz); start-up and drain of a
// wave cost about a microsecond.
constexpr double kTensorEfficiency = 0.75;
constexpr double kBytesPerCycle = 24.0;
constexpr double kWaveCycles = 1700.0;

constexpr int kWideM[] = {64, 128};
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

double cost(const GemmConfig& config, const GemmShape& shape, const Gpu& gpu) {
  const double tiles = static_cast<double>(ceil_div(shape.m, config.block_m)) *
                       ceil_div(shape.n, config.block_n) * shape.num_groups;
  const double waves = std::max(1.0, static_cast<double>(ceil_div(tiles, gpu.num_sms)));
  // Rows of wgmma-M beyond the tensor core's 64 cost further instructions.
  const int rows = config.swap_ab ? config.block_n : config.block_m;
  const int columns = config.swap_ab ? config.block_m : config.block_n;
  const double tensor = rows / 64 * 2.0 * columns / kTensorEfficiency;
  const double copy = (config.block_m + config.block_n) * kBlockK / kBytesPerCycle;
  const double output = 2.0 * config.block_m * config.block_n / kBytesPerCycle;
  return waves * (shape.k / kBlockK * std::max(tensor, copy) + output + kWaveCycles);
}

}  // namespace

GemmResources resources(const GemmConfig& config, int64_t k) {
  const int bytes_a = config.block_m * kBlockK, bytes_b = config.block_n * kBlockK;
  const int bytes_scales = config.swap_ab ? round_up(config.block_m * 4, 128) : config.block_m * 4;
  const int bytes_d = config.block_m * config.block_n * 2;
  const int consumers = (config.swap_ab ? config.block_n : config.block_m) / 64;
  const int columns = config.swap_ab ? config.block_m : config.block_n;
  GemmResources result;
  result.num_threads = 128 * (1 + consumers);
  result.shared_bytes = config.num_stages * (bytes_a + bytes_b + bytes_scales + 2 * 8) + bytes_d +
                        4 * static_cast<int>(k / kBlockK);
  // Final sums and two banks of partial ones, 64 x columns over 128 threads each, and about 40
  // more.
  result.consumer_registers = 3 * columns / 2 + 40;
  result.consumer_register_limit = consumers == 1 ? 248 : 232;
  return result;
}

bool fits(const GemmConfig& config, const GemmShape& shape, const Gpu& gpu) {
  const bool known = config.swap_ab
                         ? contains(std::begin(kSwapM), std::end(kSwapM), config.block_m) &&
                               contains(std::begin(kSwapN), std::end(kSwapN), config.block_n)
                         : contains(std::begin(kWideM), std::end(kWideM), config.block_m) &&
                               contains(std::begin(kWideN), std::end(kWideN), config.block_n);
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
  require(gpu.num_sms >= 1, "num_sms", "at least 1", gpu.num_sms);

  for (const TunedRow& row : tuned) {
    if (row.num_sms == gpu.num_sms && row.n == shape.n && row.k == shape.k &&
        row.grouped == shape.grouped && row.m_min <= shape.m && shape.m <= row.m_max &&
        (allow_swap || !row.config.swap_ab) && fits(row.config, shape, gpu)) {
      return row.config;
    }
  }

  const bool swap = allow_swap && prefers_swap(shape, gpu);
  GemmConfig best;
  double best_cost = std::numeric_limits<double>::infinity();
  const auto consider = [&](int block_m, int block_n) {
    GemmConfig config{swap, block_m, block_n, 0};
    config.num_stages = most_stages(config, shape.k, gpu);
    if (!fits(config, shape, gpu)) return;
    const double price = cost(config, shape, gpu);
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
    for (int block_n : kSwapN) consider(block_m, block_n);
  } else {
    for (int block_m : kWideM) {
      for (int block_n : kWideN) consider(block_m, block_n);
    }
  }
  require(best.num_stages > 0, "shared memory", "room for three stages", gpu.shared_bytes);
  return best;
}

}  // namespace seekernel::heuristics
