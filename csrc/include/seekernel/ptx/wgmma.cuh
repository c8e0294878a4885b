// wgmma.*: matrix products of a warpgroup, both operands in shared memory, fp32 sums in registers.
//
// Accumulator layout of a thread (lane = thread % 32, warp = thread / 32 % 4), as PTX fixes it:
//   d[4 * j + i] is row 16 * warp + lane / 4 + 8 * (i / 2), column 8 * j + 2 * (lane % 4) + i % 2.
// Several wgmma may be in flight: their accumulators must not be read, written or moved from
// wgmma_fence until wgmma_wait_group; pin_registers tells the compiler so.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

SEEKERNEL_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

SEEKERNEL_DEVICE void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most kPending of this warpgroup's committed groups are unfinished.
template <int kPending>
SEEKERNEL_DEVICE void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

template <int kCount>
SEEKERNEL_DEVICE void pin_registers(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Descriptor of a K-major operand whose rows are 128 bytes, swizzled by 128 B: groups of 8 rows lie
// 1024 bytes apart (the stride field), the leading offset is unused, and 1 in bits 62-63 names the
// swizzle. The tile starts at a multiple of 1024; a step of 32 bytes along K just adds 32.
SEEKERNEL_DEVICE uint64_t wgmma_descriptor_k_major_128b(uint32_t address) {
  return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 16 |
         (address & 0x3FFFF) >> 4;
}

// D[64, kN] (+)= A[64, 32] @ B[kN, 32]^T in e4m3, fp32 sums; D is overwritten unless `accumulate`.
template <int kN>
struct wgmma_e4m3_t;

// clang-format off
#define SEEKERNEL_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SEEKERNEL_D8(i) SEEKERNEL_D4(i), SEEKERNEL_D4(i + 4)
#define SEEKERNEL_D16(i) SEEKERNEL_D8(i), SEEKERNEL_D8(i + 8)
#define SEEKERNEL_D32(i) SEEKERNEL_D16(i), SEEKERNEL_D16(i + 16)

template <>
struct wgmma_e4m3_t<16> {
  SEEKERNEL_DEVICE static void issue(float (&d)[8], uint64_t a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7},"
        " %8, %9, p, 1, 1;\n}"
        : SEEKERNEL_D8(0)
        : "l"(a), "l"(b), "r"(accumulate));
  }
};

template <>
struct wgmma_e4m3_t<32> {
  SEEKERNEL_DEVICE static void issue(float (&d)[16], uint64_t a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15},"
        " %16, %17, p, 1, 1;\n}"
        : SEEKERNEL_D16(0)
        : "l"(a), "l"(b), "r"(accumulate));
  }
};

template <>
struct wgmma_e4m3_t<64> {
  SEEKERNEL_DEVICE static void issue(float (&d)[32], uint64_t a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31},"
        " %32, %33, p, 1, 1;\n}"
        : SEEKERNEL_D32(0)
        : "l"(a), "l"(b), "r"(accumulate));
  }
};

template <>
struct wgmma_e4m3_t<96> {
  SEEKERNEL_DEVICE static void issue(float (&d)[48], uint64_t a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %50, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
        " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47},"
        " %48, %49, p, 1, 1;\n}"
        : SEEKERNEL_D32(0), SEEKERNEL_D16(32)
        : "l"(a), "l"(b), "r"(accumulate));
  }
};

template <>
struct wgmma_e4m3_t<128> {
  SEEKERNEL_DEVICE static void issue(float (&d)[64], uint64_t a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
        " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
        " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63},"
        " %64, %65, p, 1, 1;\n}"
        : SEEKERNEL_D32(0), SEEKERNEL_D32(32)
        : "l"(a), "l"(b), "r"(accumulate));
  }
};

template <>
struct wgmma_e4m3_t<192> {
  SEEKERNEL_DEVICE static void issue(float (&d)[96], uint64_t a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
        " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
        " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63,"
        " %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79,"
        " %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95},"
        " %96, %97, p, 1, 1;\n}"
        : SEEKERNEL_D32(0), SEEKERNEL_D32(32), SEEKERNEL_D32(64)
        : "l"(a), "l"(b), "r"(accumulate));
  }
};

#undef SEEKERNEL_D4
#undef SEEKERNEL_D8
#undef SEEKERNEL_D16
#undef SEEKERNEL_D32
// clang-format on

}  // namespace seekernel::ptx
