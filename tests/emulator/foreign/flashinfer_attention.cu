// FlashInfer's SM90 prefill attention, instantiated from the headers of a PyPI wheel.
//
//   O[q, h] = softmax(scale * Q[q, h] @ K[:, h]^T) @ V[:, h],  LSE in base 2; bf16, head size 128
//
// P comes from registers and V is read MN-major, so it covers the two wgmma forms no GEMM here
// uses. The host half fills the three parameter blocks through a tensor-map callback: no driver, no
// GPU.
#define CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL 1

#include <cstring>
#include <flashinfer/attention/hopper/default_params.cuh>
#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/variants.cuh>

#ifndef CAUSAL
#define CAUSAL 0
#endif
using bf16_t = cutlass::bfloat16_t;
using params_t = flashinfer::SinglePrefillParams<bf16_t, bf16_t, bf16_t>;
using traits_t = flashinfer::AttentionKernelTraits<true, 128, 128, 128, 64, 2, bf16_t, bf16_t,
                                                   bf16_t, int32_t, flashinfer::StandardAttention>;
using mainloop_t =
    flashinfer::CollectiveMainloop<typename params_t::AdditionalParams, traits_t, CAUSAL != 0>;
using epilogue_t = flashinfer::CollectiveEpilogue<traits_t>;
using scheduler_t = flashinfer::SingleTileScheduler;

template __global__ void flashinfer::PrefillWithKVCacheKernel<mainloop_t, epilogue_t, traits_t,
                                                              false, CAUSAL != 0, scheduler_t>(
    CUTE_GRID_CONSTANT typename mainloop_t::Params const,
    CUTE_GRID_CONSTANT typename epilogue_t::Params const,
    CUTE_GRID_CONSTANT typename scheduler_t::Params const);

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

// Fill `out` with the three parameter blocks back to back, their sizes in `sizes`; write grid,
// block and cluster sizes and the dynamic shared bytes to `launch` (10 ints). Returns the bytes
// written.
extern "C" int fill_params(encode_t callback, uint64_t q, uint64_t k, uint64_t v, uint64_t o,
                           uint64_t lse, int len_q, int len_kv, int heads, float scale, void* out,
                           int* sizes, int* launch) {
  encode = callback;
  constexpr int kHead = 128;
  using flashinfer::get_gmem_layout;
  using flashinfer::get_lse_gmem_layout;
  typename params_t::AdditionalParams extra{0.f, scale, nullptr, nullptr, nullptr};
  const int64_t row = int64_t(heads) * kHead;
  auto mainloop = mainloop_t::to_underlying_arguments(
      {reinterpret_cast<bf16_t*>(q), get_gmem_layout(len_q, heads, kHead, row, kHead),
       reinterpret_cast<bf16_t*>(k), get_gmem_layout(len_kv, heads, kHead, row, kHead),
       reinterpret_cast<bf16_t*>(v), get_gmem_layout(len_kv, heads, kHead, row, kHead), -1, extra});
  auto epilogue = epilogue_t::to_underlying_arguments(
      {reinterpret_cast<bf16_t*>(o), get_gmem_layout(len_q, heads, kHead, row, kHead),
       reinterpret_cast<float*>(lse), get_lse_gmem_layout(len_q, heads)});
  typename scheduler_t::Arguments args{cutlass::ceil_div(len_q, traits_t::CTA_Q), heads, len_q,
                                       len_kv, cutlass::FastDivmod(1)};
  auto scheduler = scheduler_t::to_underlying_arguments(args);
  dim3 grid = scheduler_t::get_grid_dim(args, 1);
  const int shape[10] = {int(grid.x), int(grid.y),
                         int(grid.z), traits_t::NUM_WARPS * 32,
                         1,           1,
                         1,           1,
                         1,           sizeof(typename traits_t::SharedStorage)};
  std::memcpy(launch, shape, sizeof(shape));
  sizes[0] = sizeof(mainloop), sizes[1] = sizeof(epilogue), sizes[2] = sizeof(scheduler);
  char* at = static_cast<char*>(out);
  std::memcpy(at, &mainloop, sizeof(mainloop));
  std::memcpy(at + sizes[0], &epilogue, sizeof(epilogue));
  std::memcpy(at + sizes[0] + sizes[1], &scheduler, sizeof(scheduler));
  return sizes[0] + sizes[1] + sizes[2];
}
#endif
