// wgmma.mma_async of bf16 with N = 128, fp32 sums (PTX ISA, "Asynchronous warpgroup level matrix
// instructions").
//
// ss: A and B in shared memory; rs: A in registers. Sums are laid out as wgmma.cuh says. A register
// operand holds, for lane = thread % 32: a[0] row lane / 4, columns 2 * (lane % 4) + {0, 1}; a[1]
// eight rows further, a[2] eight columns, a[3] both: two neighbouring sums packed each.
#pragma once

#include <seekernel/ptx/wgmma.cuh>

namespace seekernel::ptx {

// Descriptor of a B operand stored [k][n], swizzled by 128 B: rows of 64 n; groups of 8 k lie 1024
// bytes apart, the next 64 n `leading` bytes apart. A step of 16 k adds 2048 bytes.
SEEKERNEL_DEVICE uint64_t wgmma_descriptor_mn_major_128b(uint32_t address, uint32_t leading) {
  return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | uint64_t{leading >> 4} << 16 |
         (address & 0x3FFFF) >> 4;
}

template <int kCount>
SEEKERNEL_DEVICE void pin_operand(uint32_t (&a)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

// clang-format off
#define SEEKERNEL_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SEEKERNEL_D16(i) SEEKERNEL_D4(i), SEEKERNEL_D4(i + 4), SEEKERNEL_D4(i + 8), SEEKERNEL_D4(i + 12)
#define SEEKERNEL_D64 SEEKERNEL_D16(0), SEEKERNEL_D16(16), SEEKERNEL_D16(32), SEEKERNEL_D16(48)

// D[64, 128] (+)= A[64, 16] @ B[128, 16]^T; D is overwritten unless `accumulate`. kTransB: B lies
// [k][n].
template <int kTransB>
SEEKERNEL_DEVICE void wgmma_m64n128k16_bf16_ss(float (&d)[64], uint64_t a, uint64_t b,
                                               uint32_t accumulate) {
  asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, 0, %67;\n}"
        : SEEKERNEL_D64
        : "l"(a), "l"(b), "r"(accumulate), "n"(kTransB));
}

template <int kTransB>
SEEKERNEL_DEVICE void wgmma_m64n128k16_bf16_rs(float (&d)[64], const uint32_t* a, uint64_t b,
                                               uint32_t accumulate) {
  asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"
        : SEEKERNEL_D64
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransB));
}

#undef SEEKERNEL_D4
#undef SEEKERNEL_D16
#undef SEEKERNEL_D64
// clang-format on

}  // namespace seekernel::ptx
