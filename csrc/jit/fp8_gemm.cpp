#include "jit/fp8_gemm.h"

#include <algorithm>
#include <seekernel/gemm/sm90_fp8_gemm_nt_args.cuh>
#include <stdexcept>

#include "driver/tensor_map.h"

namespace seekernel::jit {
namespace {

constexpr int kBlockK = 128;

void require(bool condition, const char* name, const char* expected, int64_t got) {
  if (condition) return;
  throw std::invalid_argument(std::string("fp8_gemm_nt: ") + name + ": expected " + expected +
                              ", got " + std::to_string(got));
}

}  // namespace

KernelKey sm90_fp8_gemm_nt_key(const heuristics::GemmConfig& config) {
  return {"sm90_fp8_gemm_nt",
          {0, 0, config.block_m, config.block_n, config.num_stages, static_cast<int>(config.kind),
           static_cast<int>(config.output), static_cast<int>(config.multicast), config.gather,
           config.ping_pong},
          10};
}

void fp8_gemm_nt(const Fp8GemmNt& p, const heuristics::GemmConfig& config,
                 const heuristics::Gpu& gpu, uintptr_t stream) {
  require(p.a % 16 == 0 && p.b % 16 == 0 && p.d % 16 == 0 && p.sfa % 16 == 0, "address",
          "16-byte alignment of a, b, sfa and d", 0);
  require(p.a_stride >= p.k && p.a_stride % 16 == 0, "a_stride", "a multiple of 16, at least k",
          p.a_stride);
  require(p.b_stride >= p.k && p.b_stride % 16 == 0, "b_stride", "a multiple of 16, at least k",
          p.b_stride);
  require(p.d_stride >= p.n && p.d_stride % 8 == 0, "d_stride", "a multiple of 8, at least n",
          p.d_stride);
  require(p.sfa_stride >= p.m && p.sfa_stride % 4 == 0, "sfa_stride", "a multiple of 4, at least m",
          p.sfa_stride);
  require(!config.swap_ab, "swap_ab", "a wide configuration", 1);

  const heuristics::GemmResources need = heuristics::resources(config, p.k);
  KernelTraits traits;
  traits.num_threads = static_cast<unsigned>(need.num_threads);
  traits.max_shared_bytes = static_cast<unsigned>(heuristics::Gpu{}.shared_bytes);
  traits.pdl = true;
  traits.cluster = {static_cast<unsigned>(heuristics::cluster_size(config)), 1, 1};
  const Kernel& loaded = kernel(sm90_fp8_gemm_nt_key(config), traits);

  TensorMapCache& maps = tensor_maps();
  const int slab = std::min(config.block_n, 64);
  const Swizzle swizzle_d = slab == 64 ? Swizzle::k128 : slab == 32 ? Swizzle::k64 : Swizzle::k32;
  // One matrix [rows, columns] as a stack of one.
  const auto stack = [&](uint64_t address, ElementType element, int element_bytes, int64_t columns,
                         int64_t rows, int64_t stride, int box_columns, int box_rows,
                         Swizzle swizzle) {
    TensorMap map = matrix_map(address, element, columns, rows, stride * element_bytes, box_columns,
                               box_rows, swizzle);
    map.rank = 3;
    map.dims[2] = map.box[2] = 1;
    map.strides_bytes[1] = map.strides_bytes[0];
    return map;
  };
  const int shared_a = config.multicast == heuristics::GemmMulticast::kA ? 2 : 1;
  const int shared_b = config.multicast == heuristics::GemmMulticast::kB ? 2 : 1;
  TensorMap weights = stack(p.b, ElementType::kUint8, 1, p.k, p.n, p.b_stride, kBlockK,
                            config.block_n / shared_b, Swizzle::k128);
  weights.l2_promotion = L2Promotion::k256;
  CUtensorMap map_a = maps.get(stack(p.a, ElementType::kUint8, 1, p.k, p.m, p.a_stride, kBlockK,
                                     config.block_m / shared_a, Swizzle::k128));
  CUtensorMap map_b = maps.get(weights);
  CUtensorMap map_sfa =
      maps.get(stack(p.sfa, ElementType::kFloat32, 4, p.m, p.k / kBlockK, p.sfa_stride,
                     std::min(config.block_m, 128) + 4, 1, Swizzle::kNone));
  CUtensorMap map_d =
      maps.get(stack(p.d, ElementType::kBfloat16, 2, p.n, p.m, p.d_stride, slab, 16, swizzle_d));
  const heuristics::GemmShape shape{p.m, p.n, p.k};
  const heuristics::GemmRaster raster = heuristics::raster(config, shape, gpu);
  sm90_fp8_gemm_nt_args_t args{};
  args.tiles.m = static_cast<int>(p.m);
  args.tiles.num_groups = 1;
  args.tiles.band = raster.band;
  args.tiles.band_n = raster.band_n;
  args.sfb = reinterpret_cast<const float*>(p.sfb);
  args.d = reinterpret_cast<void*>(p.d);
  args.d_stride_m = p.d_stride;
  args.n = static_cast<int>(p.n);
  args.k = static_cast<int>(p.k);
  void* parameters[] = {&map_a, &map_b, &map_sfa, &map_d, &args};
  loaded.launch({static_cast<unsigned>(heuristics::num_ctas(config, shape, gpu)), 1, 1},
                static_cast<unsigned>(need.shared_bytes), stream, parameters);
}

}  // namespace seekernel::jit
