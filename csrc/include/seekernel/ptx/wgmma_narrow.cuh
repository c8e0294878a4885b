// wgmma.* in e4m3 for the few-token sizes of N that wgmma.cuh does not have.
#pragma once

#include <seekernel/ptx/wgmma.cuh>

namespace seekernel::ptx {

// clang-format off
#define SEEKERNEL_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SEEKERNEL_D8(i) SEEKERNEL_D4(i), SEEKERNEL_D4(i + 4)

template <>
struct wgmma_e4m3_t<8> {
  SEEKERNEL_DEVICE static void issue(float (&d)[4], uint64_t a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3},"
        " %4, %5, p, 1, 1;\n}"
        : SEEKERNEL_D4(0)
        : "l"(a), "l"(b), "r"(accumulate));
  }
};

template <>
struct wgmma_e4m3_t<24> {
  SEEKERNEL_DEVICE static void issue(float (&d)[12], uint64_t a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %14, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n24k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11},"
        " %12, %13, p, 1, 1;\n}"
        : SEEKERNEL_D8(0), SEEKERNEL_D4(8)
        : "l"(a), "l"(b), "r"(accumulate));
  }
};

template <>
struct wgmma_e4m3_t<48> {
  SEEKERNEL_DEVICE static void issue(float (&d)[24], uint64_t a, uint64_t b, uint32_t accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %26, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n48k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23},"
        " %24, %25, p, 1, 1;\n}"
        : SEEKERNEL_D8(0), SEEKERNEL_D8(8), SEEKERNEL_D8(16)
        : "l"(a), "l"(b), "r"(accumulate));
  }
};

#undef SEEKERNEL_D4
#undef SEEKERNEL_D8
// clang-format on

}  // namespace seekernel::ptx
