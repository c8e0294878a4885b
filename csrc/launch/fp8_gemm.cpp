#include "launch/fp8_gemm.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "driver/tensor_map.h"

namespace seekernel::launch {

using namespace cu;

namespace {

constexpr int kBlockK = 128;

void require(bool condition, const char* name, const char* expected, int64_t got) {
  if (condition) return;
  throw std::invalid_argument(std::string("fp8_gemm_nt: ") + name + ": expected " + expected +
                              ", got " + std::to_string(got));
}

}  // namespace

KernelKey sm90_fp8_gemm_nt_key(const heuristics::GemmConfig& config) {
  return {"sm90_fp8_gemm_nt", {0, 0, config.block_m, config.block_n, config.num_stages}, 5};
}

void fp8_gemm_nt(const Fp8GemmNt& p, const heuristics::GemmConfig& config, Finder find,
                 uintptr_t stream) {
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
  const Kernel& kernel = find(sm90_fp8_gemm_nt_key(config), traits);

  TensorMapCache& maps = tensor_maps();
  const int slab = std::min(config.block_n, 64);
  const Swizzle swizzle_d = slab == 64 ? Swizzle::k128 : slab == 32 ? Swizzle::k64 : Swizzle::k32;
  TensorMap weights = matrix_map(p.b, ElementType::kUint8, p.k, p.n, p.b_stride, kBlockK,
                                 config.block_n, Swizzle::k128);
  weights.l2_promotion = L2Promotion::k256;
  CUtensorMap map_a = maps.get(matrix_map(p.a, ElementType::kUint8, p.k, p.m, p.a_stride, kBlockK,
                                          config.block_m, Swizzle::k128));
  CUtensorMap map_b = maps.get(weights);
  CUtensorMap map_sfa = maps.get(matrix_map(p.sfa, ElementType::kFloat32, p.m, p.k / kBlockK,
                                            p.sfa_stride * 4, config.block_m, 1, Swizzle::kNone));
  CUtensorMap map_d = maps.get(
      matrix_map(p.d, ElementType::kBfloat16, p.n, p.m, p.d_stride * 2, slab, 64, swizzle_d));
  uint64_t sfb = p.sfb;
  int k = static_cast<int>(p.k);
  void* parameters[] = {&map_a, &map_b, &map_sfa, &map_d, &sfb, &k};
  const auto tiles = [](int64_t size, int block) {
    return static_cast<unsigned>((size + block - 1) / block);
  };
  kernel.launch({tiles(p.n, config.block_n), tiles(p.m, config.block_m), 1},
                static_cast<unsigned>(need.shared_bytes), stream, parameters);
}

}  // namespace seekernel::launch
