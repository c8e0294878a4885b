// wgmma.* on 16-bit operands (bfloat16 or float16), fp32 sums in registers.
//
// ss: A and B in shared memory; rs: A in registers. Accumulators are laid out as wgmma.cuh says. A
// transposed operand is stored with the dimension it is not summed over contiguous (MN-major).
// A register operand holds, for lane = thread % 32: a[0] row lane / 4, columns 2 * (lane % 4) + {0,
// 1}; a[1] eight rows, a[2] eight columns, a[3] both further: two neighbouring accumulators packed.
#pragma once

#include <seekernel/fused/vector.cuh>
#include <seekernel/ptx/wgmma.cuh>

namespace seekernel::ptx {

// Descriptor of an operand swizzled by 128 B. K-major: rows of 128 bytes, groups of 8 rows lie
// `stride` apart, `leading` is unused. MN-major: rows of 64 elements of one k; groups of 8 k lie
// `stride` apart, the next 64 elements along M or N `leading` apart. The tile starts at a multiple
// of 1024.
SEEKERNEL_DEVICE uint64_t wgmma_descriptor_128b(uint32_t address, uint32_t leading,
                                                uint32_t stride) {
  return uint64_t{1} << 62 | uint64_t{stride >> 4} << 32 | uint64_t{leading >> 4} << 16 |
         (address & 0x3FFFF) >> 4;
}

template <int kCount>
SEEKERNEL_DEVICE void pin_registers(uint32_t (&a)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

// D[64, kN] (+)= A[64, 16] @ B[kN, 16]^T; D is overwritten unless `accumulate`.
template <typename T, int kN>
struct wgmma_16bit_t;

// clang-format off
#define SEEKERNEL_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SEEKERNEL_D8(i) SEEKERNEL_D4(i), SEEKERNEL_D4(i + 4)
#define SEEKERNEL_D16(i) SEEKERNEL_D8(i), SEEKERNEL_D8(i + 8)
#define SEEKERNEL_D32(i) SEEKERNEL_D16(i), SEEKERNEL_D16(i + 16)

#define SEEKERNEL_WGMMA_N64(TYPE, NAME) \
  template <> \
  struct wgmma_16bit_t<TYPE, 64> { \
    template <int kTransA, int kTransB> \
    SEEKERNEL_DEVICE static void ss(float (&d)[32], uint64_t a, uint64_t b, uint32_t accumulate) { \
      asm volatile( \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15," \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}," \
        " %32, %33, p, 1, 1, %35, %36;\n}" \
        : SEEKERNEL_D32(0) \
        : "l"(a), "l"(b), "r"(accumulate), "n"(kTransA), "n"(kTransB)); \
    } \
    template <int kTransB> \
    SEEKERNEL_DEVICE static void rs(float (&d)[32], const uint32_t* a, uint64_t b, uint32_t accumulate) { \
      asm volatile( \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15," \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}," \
        " {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}" \
        : SEEKERNEL_D32(0) \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransB)); \
    } \
  };

#define SEEKERNEL_WGMMA_N128(TYPE, NAME) \
  template <> \
  struct wgmma_16bit_t<TYPE, 128> { \
    template <int kTransA, int kTransB> \
    SEEKERNEL_DEVICE static void ss(float (&d)[64], uint64_t a, uint64_t b, uint32_t accumulate) { \
      asm volatile( \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15," \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31," \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47," \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}," \
        " %64, %65, p, 1, 1, %67, %68;\n}" \
        : SEEKERNEL_D32(0), SEEKERNEL_D32(32) \
        : "l"(a), "l"(b), "r"(accumulate), "n"(kTransA), "n"(kTransB)); \
    } \
    template <int kTransB> \
    SEEKERNEL_DEVICE static void rs(float (&d)[64], const uint32_t* a, uint64_t b, uint32_t accumulate) { \
      asm volatile( \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15," \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31," \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47," \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}," \
        " {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}" \
        : SEEKERNEL_D32(0), SEEKERNEL_D32(32) \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransB)); \
    } \
  };

#define SEEKERNEL_WGMMA_N256(TYPE, NAME) \
  template <> \
  struct wgmma_16bit_t<TYPE, 256> { \
    template <int kTransA, int kTransB> \
    SEEKERNEL_DEVICE static void ss(float (&d)[128], uint64_t a, uint64_t b, uint32_t accumulate) { \
      asm volatile( \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." NAME "." NAME " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15," \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31," \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47," \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63," \
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79," \
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95," \
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111," \
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}," \
        " %128, %129, p, 1, 1, %131, %132;\n}" \
        : SEEKERNEL_D32(0), SEEKERNEL_D32(32), SEEKERNEL_D32(64), SEEKERNEL_D32(96) \
        : "l"(a), "l"(b), "r"(accumulate), "n"(kTransA), "n"(kTransB)); \
    } \
    template <int kTransB> \
    SEEKERNEL_DEVICE static void rs(float (&d)[128], const uint32_t* a, uint64_t b, uint32_t accumulate) { \
      asm volatile( \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." NAME "." NAME " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15," \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31," \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47," \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63," \
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79," \
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95," \
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111," \
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}," \
        " {%128, %129, %130, %131}, %132, p, 1, 1, %134;\n}" \
        : SEEKERNEL_D32(0), SEEKERNEL_D32(32), SEEKERNEL_D32(64), SEEKERNEL_D32(96) \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransB)); \
    } \
  };

#define SEEKERNEL_WGMMA(TYPE, NAME) \
  SEEKERNEL_WGMMA_N64(TYPE, NAME) \
  SEEKERNEL_WGMMA_N128(TYPE, NAME) \
  SEEKERNEL_WGMMA_N256(TYPE, NAME)

SEEKERNEL_WGMMA(bfloat16_t, "bf16")
SEEKERNEL_WGMMA(float16_t, "f16")

#undef SEEKERNEL_WGMMA
#undef SEEKERNEL_WGMMA_N64
#undef SEEKERNEL_WGMMA_N128
#undef SEEKERNEL_WGMMA_N256
#undef SEEKERNEL_D4
#undef SEEKERNEL_D8
#undef SEEKERNEL_D16
#undef SEEKERNEL_D32
// clang-format on

}  // namespace seekernel::ptx
