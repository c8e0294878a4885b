// mma.sync: matrix products of one warp, operands and sums in registers (PTX ISA, "Matrix
// multiply-accumulate operation using mma instruction").
#pragma once

#include <seekernel/ptx/types.cuh>

namespace seekernel::ptx {

// D[16, 8] += A[16, 16] @ B[16, 8] in bfloat16 with fp32 sums. With g = lane / 4, t = lane % 4:
//   a[0], a[2]: row g, columns 2 t and 2 t + 8 (two values each); a[1], a[3]: row g + 8
//   b[0], b[1]: column g, rows 2 t and 2 t + 8
//   d[0], d[1]: row g, columns 2 t, 2 t + 1; d[2], d[3]: row g + 8
SEEKERNEL_DEVICE void mma_m16n8k16_bf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                        uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace seekernel::ptx
