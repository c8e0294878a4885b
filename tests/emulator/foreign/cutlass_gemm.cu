// One SM90 GEMM assembled from the CUTLASS headers of a PyPI wheel: a kernel nobody here wrote.
//
//   D[m, n] = alpha * A[m, k] @ B[n, k]^T + beta * C[m, n],  C and D bf16 row-major, fp32
//   accumulate
//
// -DVARIANT=0: e4m3, 128x128x128 tile, cooperative consumers.  -DVARIANT=1: bf16, 64x128x64,
// ping-pong. The device half is taken as PTX. The host half is a shared library whose only job is
// to fill the kernel's parameter block; it reaches the tensor-map encoder through a callback, so it
// needs neither a driver nor a GPU.
#define CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL 1

#include <cstring>

#include "cute/tensor.hpp"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/util/packed_stride.hpp"

using namespace cute;

#if VARIANT == 0
using element_t = cutlass::float_e4m3_t;
using tile_t = Shape<_128, _128, _128>;
using mainloop_schedule_t = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
using epilogue_schedule_t = cutlass::epilogue::TmaWarpSpecializedCooperative;
#else
using element_t = cutlass::bfloat16_t;
using tile_t = Shape<_64, _128, _64>;
using mainloop_schedule_t = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
using epilogue_schedule_t = cutlass::epilogue::TmaWarpSpecialized;
#endif
using output_t = cutlass::bfloat16_t;
using cluster_t = Shape<_2, _1, _1>;
constexpr int kAlignIn = 16 / sizeof(element_t);
constexpr int kAlignOut = 16 / sizeof(output_t);

using epilogue_t = typename cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, tile_t, cluster_t,
    cutlass::epilogue::collective::EpilogueTileAuto, float, float, output_t,
    cutlass::layout::RowMajor, kAlignOut, output_t, cutlass::layout::RowMajor, kAlignOut,
    epilogue_schedule_t>::CollectiveOp;
using mainloop_t = typename cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, element_t, cutlass::layout::RowMajor,
    kAlignIn, element_t, cutlass::layout::ColumnMajor, kAlignIn, float, tile_t, cluster_t,
    cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
        sizeof(typename epilogue_t::SharedStorage))>,
    mainloop_schedule_t>::CollectiveOp;
using kernel_t =
    cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, mainloop_t, epilogue_t>;

template __global__ void cutlass::device_kernel<kernel_t>(CUTLASS_GRID_CONSTANT
                                                          typename kernel_t::Params const);

#ifndef __CUDA_ARCH__
using encode_t = int (*)(void*, int, unsigned, void*, const uint64_t*, const uint64_t*,
                         const uint32_t*, const uint32_t*, int, int, int, int);
static encode_t encode = nullptr;

extern "C" CUresult CUDAAPI cuTensorMapEncodeTiled(
    CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* dims,
    const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* element_strides,
    CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2,
    CUtensorMapFloatOOBfill fill) {
  return static_cast<CUresult>(encode(map, type, rank, base, dims, strides, box, element_strides,
                                      interleave, swizzle, l2, fill));
}

// Fill `out` with the kernel's parameters; write grid, block and cluster sizes and the dynamic
// shared bytes to `launch` (10 ints). Returns the size of the block, or 0 for a refused problem.
extern "C" int fill_params(encode_t callback, uint64_t a, uint64_t b, uint64_t c, uint64_t d, int m,
                           int n, int k, float alpha, float beta, int num_sms, void* out,
                           int* launch) {
  encode = callback;
  using gemm_t = cutlass::gemm::device::GemmUniversalAdapter<kernel_t>;
  cutlass::KernelHardwareInfo hw;
  hw.sm_count = num_sms;
  hw.max_active_clusters = num_sms / 2;
  typename gemm_t::Arguments args{
      cutlass::gemm::GemmUniversalMode::kGemm,
      {m, n, k, 1},
      {reinterpret_cast<element_t*>(a),
       cutlass::make_cute_packed_stride(typename kernel_t::StrideA{}, {m, k, 1}),
       reinterpret_cast<element_t*>(b),
       cutlass::make_cute_packed_stride(typename kernel_t::StrideB{}, {n, k, 1})},
      {{alpha, beta},
       reinterpret_cast<output_t*>(c),
       cutlass::make_cute_packed_stride(typename kernel_t::StrideC{}, {m, n, 1}),
       reinterpret_cast<output_t*>(d),
       cutlass::make_cute_packed_stride(typename kernel_t::StrideD{}, {m, n, 1})},
      hw};
  if (kernel_t::can_implement(args) == false) return 0;
  auto params = kernel_t::to_underlying_arguments(args, nullptr);
  dim3 grid = kernel_t::get_grid_shape(params), block = kernel_t::get_block_shape();
  const int sizes[10] = {int(grid.x),
                         int(grid.y),
                         int(grid.z),
                         int(block.x),
                         int(block.y),
                         int(block.z),
                         2,
                         1,
                         1,
                         kernel_t::SharedStorageSize};
  std::memcpy(launch, sizes, sizeof(sizes));
  std::memcpy(out, &params, sizeof(params));
  return sizeof(params);
}
#endif
