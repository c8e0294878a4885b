// The CPU kernels as plain functions over raw pointers and a range of work, one table per ISA.
// Each kernel is written once, in <family>.inl, over the vectors of vec.h, and compiled per ISA.
#pragma once

#include "cpu/kernels/attention.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/mla_prepare.h"
#include "cpu/kernels/moe.h"
#include "cpu/kernels/norm.h"
#include "cpu/kernels/quantize.h"
#include "cpu/kernels/sampling.h"

namespace seekernel::cpu {

struct KernelTable {
  NormKernels norm;
  QuantizeKernels quantize;
  MoeKernels moe;
  GemmKernels gemm;
  MlaPrepareKernels mla_prepare;
  AttentionKernels attention;
  SamplingKernels sampling;
};

namespace baseline {
extern const KernelTable kTable;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
#endif

}  // namespace seekernel::cpu
