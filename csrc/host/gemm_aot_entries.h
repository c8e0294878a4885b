// Makes the table of one part of aot_gemm.inc: define SEEKERNEL_AOT_PART, then include this.
#pragma once

#include "host/gemm_aot.h"
//
#include <seekernel/gemm/sm90_fp8_gemm_nt.cuh>

namespace seekernel::cuda {

template <class Config>
const void* fp8_gemm_function() {
  return reinterpret_cast<const void*>(&seekernel::sm90_fp8_gemm_nt<Config>);
}

#define SEEKERNEL_AOT_FP8_GEMM(block_m, block_n, num_stages, kind, output, multicast, gather)   \
  AotKernel{{"sm90_fp8_gemm_nt",                                                                \
             {0, 0, block_m, block_n, num_stages, kind, output, multicast, gather, 0},          \
             10},                                                                               \
            fp8_gemm_function<sm90_fp8_gemm_nt_config<0, 0, block_m, block_n, num_stages, kind, \
                                                      output, multicast, gather>>()},

}  // namespace seekernel::cuda
