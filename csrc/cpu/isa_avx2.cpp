// The CPU kernels for avx2. Standard headers come before the target pragma, so that no inline
// function of theirs is compiled for an ISA that the machine may lack.
#include <cstdint>

#include "cpu/kernels/table.h"
#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c")
#define SEEKERNEL_ISA avx2
#define SEEKERNEL_VECTOR_BYTES 32
#define SEEKERNEL_ISA_AVX2 1
#include "cpu/kernels/all.inl"
#endif
