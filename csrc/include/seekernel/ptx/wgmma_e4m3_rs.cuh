// wgmma.* in e4m3 with A from registers, fp32 sums (PTX ISA, "wgmma.mma_async", A in registers).
//
// For lane = thread % 32, warp = thread / 32 % 4: a[0] is row 16 * warp + lane / 4, bytes 4 * (lane
// % 4) to + 3 along K; a[1] eight rows further, a[2] sixteen bytes further, a[3] both. The
// registers must keep their values until the group has completed: pin_registers after the wait says
// so.
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

template <int kCount>
SEEKERNEL_DEVICE void pin_fragments(uint32_t (&a)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

// D[64, kN] (+)= A[64, 32] @ B[kN, 32]^T in e4m3, fp32 sums; D is overwritten unless `accumulate`.
template <int kN>
struct wgmma_e4m3_rs_t;

// clang-format off
#define SEEKERNEL_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SEEKERNEL_D8(i) SEEKERNEL_D4(i), SEEKERNEL_D4(i + 4)
#define SEEKERNEL_D16(i) SEEKERNEL_D8(i), SEEKERNEL_D8(i + 8)

template <>
struct wgmma_e4m3_rs_t<8> {
  SEEKERNEL_DEVICE static void issue(float (&d)[4], const uint32_t* a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3},"
        " {%4, %5, %6, %7}, %8, p, 1, 1;\n}"
        : SEEKERNEL_D4(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
  }
};

template <>
struct wgmma_e4m3_rs_t<16> {
  SEEKERNEL_DEVICE static void issue(float (&d)[8], const uint32_t* a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7},"
        " {%8, %9, %10, %11}, %12, p, 1, 1;\n}"
        : SEEKERNEL_D8(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
  }
};

template <>
struct wgmma_e4m3_rs_t<24> {
  SEEKERNEL_DEVICE static void issue(float (&d)[12], const uint32_t* a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %17, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n24k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11},"
        " {%12, %13, %14, %15}, %16, p, 1, 1;\n}"
        : SEEKERNEL_D8(0), SEEKERNEL_D4(8)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
  }
};

template <>
struct wgmma_e4m3_rs_t<32> {
  SEEKERNEL_DEVICE static void issue(float (&d)[16], const uint32_t* a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15},"
        " {%16, %17, %18, %19}, %20, p, 1, 1;\n}"
        : SEEKERNEL_D16(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
  }
};

template <>
struct wgmma_e4m3_rs_t<48> {
  SEEKERNEL_DEVICE static void issue(float (&d)[24], const uint32_t* a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %29, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n48k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23},"
        " {%24, %25, %26, %27}, %28, p, 1, 1;\n}"
        : SEEKERNEL_D16(0), SEEKERNEL_D8(16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
  }
};

template <>
struct wgmma_e4m3_rs_t<64> {
  SEEKERNEL_DEVICE static void issue(float (&d)[32], const uint32_t* a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31},"
        " {%32, %33, %34, %35}, %36, p, 1, 1;\n}"
        : SEEKERNEL_D16(0), SEEKERNEL_D16(16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
  }
};

template <>
struct wgmma_e4m3_rs_t<96> {
  SEEKERNEL_DEVICE static void issue(float (&d)[48], const uint32_t* a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %53, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
        " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47},"
        " {%48, %49, %50, %51}, %52, p, 1, 1;\n}"
        : SEEKERNEL_D16(0), SEEKERNEL_D16(16), SEEKERNEL_D16(32)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
  }
};

#undef SEEKERNEL_D4
#undef SEEKERNEL_D8
#undef SEEKERNEL_D16
// clang-format on

}  // namespace seekernel::ptx
