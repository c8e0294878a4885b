// Launches of the FP8 GEMM family: check the sizes, choose or take a configuration, describe the
// tensors, find the kernel.
#pragma once

#include "heuristics/gemm.h"
#include "launch/kernel.h"

namespace seekernel::launch {

// D = A @ B^T, of all kinds and outputs: include/seekernel/gemm/sm90_fp8_gemm_nt.cuh says what each
// member means and scheduler/tiles.cuh what the kinds keep in `groups`. Addresses are device
// memory, 0 where unused; strides count elements. Names of strides end in the dimension: _m rows of
// A and D, _n rows of B, _k blocks of 128 of K, _g matrices or groups.
struct Fp8Gemm {
  heuristics::TileKind kind = heuristics::TileKind::kDense;
  heuristics::GemmOutput output = heuristics::GemmOutput::kBfloat16;
  int64_t m = 0;           // rows of D: of the matrix, or of one of a batch
  int64_t n = 0, k = 0;    // n: rows of B, of one group
  int64_t num_groups = 1;  // matrices of B
  int64_t expected_m = 0;  // grouped: rows of one group, as far as the host knows
  int64_t tokens = 0;      // rows of A where row_token gathers them
  uint64_t a = 0, sfa = 0, b = 0, sfb = 0, d = 0;
  uint64_t sfd = 0;         // output kSwigluFp8
  uint64_t groups = 0;      // offsets, m_indices, masked_m or the tile map
  uint64_t num_tiles = 0;   // kTileMap
  uint64_t row_weight = 0;  // or 0
  uint64_t row_token = 0;   // or 0: rows of A are those of D
  int64_t a_stride_m = 0, a_stride_g = 0;
  int64_t sfa_stride_k = 0, sfa_stride_g = 0;
  int64_t b_stride_n = 0, b_stride_g = 0;
  int64_t sfb_stride_g = 0;  // a group's own scales lie together
  int64_t d_stride_m = 0, d_stride_g = 0;
  int64_t sfd_stride_n = 0;
  int offset_bytes = 4;
};

heuristics::GemmShape shape_of(const Fp8Gemm& problem);

// The kernel of the wide configuration `config`, for n and k known at run time.
KernelKey sm90_fp8_gemm_nt_key(const heuristics::GemmConfig& config);

// Throws std::invalid_argument naming the size that does not fit, std::runtime_error from the
// driver, and what `find` throws.
void fp8_gemm(const Fp8Gemm& problem, const heuristics::GemmConfig& config,
              const heuristics::Gpu& gpu, Finder find, uintptr_t stream);

// The same with the configuration of `choose`, which is asked once per shape.
using Chooser = heuristics::GemmConfig (*)(const heuristics::GemmShape&, const heuristics::Gpu&);
void fp8_gemm(const Fp8Gemm& problem, const heuristics::Gpu& gpu, Chooser choose, Finder find,
              uintptr_t stream);

// Forgets what was chosen.
void clear_choices();

}  // namespace seekernel::launch
