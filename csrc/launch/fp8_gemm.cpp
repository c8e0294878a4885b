#include "launch/fp8_gemm.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <seekernel/gemm/sm90_fp8_gemm_nt_args.cuh>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "driver/tensor_map.h"

namespace seekernel::launch {

using namespace cu;
using heuristics::GemmConfig;
using heuristics::GemmMulticast;
using heuristics::GemmOutput;
using heuristics::GemmShape;
using heuristics::Gpu;
using heuristics::TileKind;

namespace {

constexpr int kBlockK = 128;

void require(bool condition, const char* name, const char* expected, int64_t got) {
  if (condition) return;
  throw std::invalid_argument(std::string("fp8_gemm_nt: ") + name + ": expected " + expected +
                              ", got " + std::to_string(got));
}

bool is_stack(TileKind kind) { return kind == TileKind::kBatched || kind == TileKind::kMasked; }

int element_bytes(GemmOutput output) {
  return output == GemmOutput::kBfloat16 ? 2 : output == GemmOutput::kFloat32 ? 4 : 1;
}

// Matrices [rows, columns] one behind the other.
TensorMap stack_map(uint64_t address, ElementType element, int bytes, int64_t columns, int64_t rows,
                    int64_t num_matrices, int64_t stride, int64_t stride_g, int box_columns,
                    int box_rows, Swizzle swizzle) {
  TensorMap map =
      matrix_map(address, element, columns, rows, stride * bytes, box_columns, box_rows, swizzle);
  map.rank = 3;
  map.dims[2] = static_cast<uint64_t>(num_matrices);
  map.box[2] = 1;
  // The driver wants a stride of a dimension of one, too.
  map.strides_bytes[1] =
      num_matrices > 1 ? static_cast<uint64_t>(stride_g * bytes) : map.strides_bytes[0];
  return map;
}

void check_sizes(const Fp8Gemm& p) {
  require(p.a % 16 == 0 && p.b % 16 == 0 && p.d % 16 == 0 && p.sfa % 16 == 0, "address",
          "16-byte alignment of a, b, sfa and d", 0);
  require(p.a_stride_m >= p.k && p.a_stride_m % 16 == 0, "a_stride", "a multiple of 16, at least k",
          p.a_stride_m);
  require(p.b_stride_n >= p.k && p.b_stride_n % 16 == 0, "b_stride", "a multiple of 16, at least k",
          p.b_stride_n);
  require(p.a_stride_g % 16 == 0, "a_stride_g", "a multiple of 16", p.a_stride_g);
  require(p.b_stride_g % 16 == 0, "b_stride_g", "a multiple of 16", p.b_stride_g);
  const int64_t columns = p.output == GemmOutput::kSwigluFp8 ? p.n / 2 : p.n;
  const int step = 16 / element_bytes(p.output);
  require(p.output != GemmOutput::kBfloat16 || (p.d_stride_m >= columns && p.d_stride_m % 8 == 0),
          "d_stride", "a multiple of 8, at least n", p.d_stride_m);
  require(p.d_stride_m >= columns && p.d_stride_m % step == 0 && p.d_stride_g % step == 0,
          "d_stride", "rows of d at multiples of 16 bytes, as long as d's", p.d_stride_m);
  const int64_t rows = p.row_token != 0 ? p.tokens : p.m;
  require(p.sfa_stride_k >= rows && p.sfa_stride_k % 4 == 0, "sfa_stride",
          "a multiple of 4, at least m", p.sfa_stride_k);
  require(p.sfa_stride_g % 4 == 0, "sfa_stride_g", "a multiple of 4", p.sfa_stride_g);
  require(p.output != GemmOutput::kSwigluFp8 || (p.sfd != 0 && p.sfd_stride_n >= p.m), "sfd_stride",
          "at least m", p.sfd_stride_n);
  require(p.row_token == 0 || p.kind != TileKind::kMasked, "row_token", "none for masked groups",
          1);
}

struct ShapeHash {
  size_t operator()(const std::pair<Chooser, GemmShape>& key) const {
    const GemmShape& s = key.second;
    uint64_t hash = reinterpret_cast<uintptr_t>(key.first);
    for (const int64_t part :
         {s.m, s.n, s.k, int64_t{s.num_groups}, int64_t{s.grouped}, static_cast<int64_t>(s.kind),
          static_cast<int64_t>(s.output), int64_t{s.gather}}) {
      hash = (hash ^ static_cast<uint64_t>(part)) * 0xD6E8FEB86659FD93;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

struct ShapeEqual {
  bool operator()(const std::pair<Chooser, GemmShape>& a,
                  const std::pair<Chooser, GemmShape>& b) const {
    const GemmShape &x = a.second, &y = b.second;
    return a.first == b.first && x.m == y.m && x.n == y.n && x.k == y.k &&
           x.num_groups == y.num_groups && x.grouped == y.grouped && x.kind == y.kind &&
           x.output == y.output && x.gather == y.gather;
  }
};

struct Choice {
  int num_sms;
  GemmConfig config;
};
std::mutex choices_mutex;
std::unordered_map<std::pair<Chooser, GemmShape>, Choice, ShapeHash, ShapeEqual>& choices() {
  static auto& map =
      *new std::unordered_map<std::pair<Chooser, GemmShape>, Choice, ShapeHash, ShapeEqual>;
  return map;
}

}  // namespace

GemmShape shape_of(const Fp8Gemm& p) {
  GemmShape shape;
  const bool grouped = p.kind != TileKind::kDense && p.kind != TileKind::kBatched;
  shape.m = grouped ? std::max<int64_t>(1, p.expected_m) : p.m;
  shape.n = p.n;
  shape.k = p.k;
  shape.num_groups = static_cast<int>(p.num_groups);
  shape.grouped = grouped;
  shape.kind = p.kind;
  shape.output = p.output;
  shape.gather = p.row_token != 0;
  return shape;
}

KernelKey sm90_fp8_gemm_nt_key(const GemmConfig& config) {
  return {"sm90_fp8_gemm_nt",
          {0, 0, config.block_m, config.block_n, config.num_stages, static_cast<int>(config.kind),
           static_cast<int>(config.output), static_cast<int>(config.multicast), config.gather,
           config.ping_pong},
          10};
}

void fp8_gemm(const Fp8Gemm& p, const GemmConfig& config, const Gpu& gpu, Finder find,
              uintptr_t stream) {
  check_sizes(p);
  require(!config.swap_ab, "swap_ab", "a wide configuration", 1);

  const heuristics::GemmResources need = heuristics::resources(config, p.k);
  KernelTraits traits;
  traits.num_threads = static_cast<unsigned>(need.num_threads);
  traits.max_shared_bytes = static_cast<unsigned>(gpu.shared_bytes);
  traits.pdl = true;
  traits.cluster = {static_cast<unsigned>(heuristics::cluster_size(config)), 1, 1};
  const Kernel& kernel = find(sm90_fp8_gemm_nt_key(config), traits);

  TensorMapCache& maps = tensor_maps();
  const bool gather = p.row_token != 0;
  const int64_t num_matrices = is_stack(p.kind) ? p.num_groups : 1;
  const int share_a = config.multicast == GemmMulticast::kA ? 2 : 1;
  const int share_b = config.multicast == GemmMulticast::kB ? 2 : 1;
  TensorMap weights = stack_map(p.b, ElementType::kUint8, 1, p.k, p.n, p.num_groups, p.b_stride_n,
                                p.b_stride_g, kBlockK, config.block_n / share_b, Swizzle::k128);
  weights.l2_promotion = L2Promotion::k256;
  CUtensorMap map_a{}, map_b = maps.get(weights), map_sfa{}, map_d{};
  if (!gather) {
    map_a = maps.get(stack_map(p.a, ElementType::kUint8, 1, p.k, p.m, num_matrices, p.a_stride_m,
                               p.a_stride_g, kBlockK, config.block_m / share_a, Swizzle::k128));
    map_sfa = maps.get(stack_map(p.sfa, ElementType::kFloat32, 4, p.m, p.k / kBlockK, num_matrices,
                                 p.sfa_stride_k, p.sfa_stride_g, std::min(config.block_m, 128) + 4,
                                 1, Swizzle::kNone));
  }
  if (p.output == GemmOutput::kBfloat16) {
    const int slab = std::min(config.block_n, 64);
    map_d = maps.get(stack_map(p.d, ElementType::kBfloat16, 2, p.n, p.m, num_matrices, p.d_stride_m,
                               p.d_stride_g, slab, 16,
                               slab == 64   ? Swizzle::k128
                               : slab == 32 ? Swizzle::k64
                                            : Swizzle::k32));
  } else if (p.output == GemmOutput::kSwigluFp8) {
    map_d = maps.get(stack_map(p.d, ElementType::kUint8, 1, p.n / 2, p.m, num_matrices,
                               p.d_stride_m, p.d_stride_g, 128, 16, Swizzle::k128));
  }
  const GemmShape shape = shape_of(p);
  const heuristics::GemmRaster raster = heuristics::raster(config, shape, gpu);
  sm90_fp8_gemm_nt_args_t args{};
  args.tiles.groups = reinterpret_cast<const void*>(p.groups);
  args.tiles.num_tiles = reinterpret_cast<const int*>(p.num_tiles);
  args.tiles.m = static_cast<int>(p.m);
  args.tiles.num_groups = static_cast<int>(p.num_groups);
  args.tiles.offset_bytes = p.offset_bytes;
  args.tiles.band = raster.band;
  args.tiles.band_n = raster.band_n;
  args.sfb = reinterpret_cast<const float*>(p.sfb);
  args.sfb_stride_g = p.sfb_stride_g;
  args.d = reinterpret_cast<void*>(p.d);
  args.d_stride_m = p.d_stride_m;
  args.d_stride_g = p.d_stride_g;
  args.sfd = reinterpret_cast<float*>(p.sfd);
  args.sfd_stride = p.sfd_stride_n;
  args.row_weight = reinterpret_cast<const float*>(p.row_weight);
  args.row_token = reinterpret_cast<const int*>(p.row_token);
  if (gather) {
    args.a = reinterpret_cast<const unsigned char*>(p.a);
    args.a_stride_m = p.a_stride_m;
    args.sfa = reinterpret_cast<const float*>(p.sfa);
    args.sfa_stride = p.sfa_stride_k;
  }
  args.n = static_cast<int>(p.n);
  args.k = static_cast<int>(p.k);
  void* parameters[] = {&map_a, &map_b, &map_sfa, &map_d, &args};
  kernel.launch({static_cast<unsigned>(heuristics::num_ctas(config, shape, gpu)), 1, 1},
                static_cast<unsigned>(need.shared_bytes), stream, parameters);
}

void fp8_gemm(const Fp8Gemm& p, const Gpu& gpu, Chooser choose, Finder find, uintptr_t stream) {
  constexpr size_t kMostChoices = 4096;
  const std::pair<Chooser, GemmShape> key{choose, shape_of(p)};
  GemmConfig config;
  {
    const std::lock_guard lock(choices_mutex);
    const auto found = choices().find(key);
    if (found != choices().end() && found->second.num_sms == gpu.num_sms) {
      config = found->second.config;
    } else {
      config = choose(key.second, gpu);
      if (choices().size() >= kMostChoices) choices().clear();
      choices()[key] = {gpu.num_sms, config};
    }
  }
  fp8_gemm(p, config, gpu, find, stream);
}

void clear_choices() {
  const std::lock_guard lock(choices_mutex);
  choices().clear();
}

}  // namespace seekernel::launch
