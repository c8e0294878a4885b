// mma.sync on one warp: m16n8 with K of 4 to 32, floating point and 8-bit integers.

#include "tensor_core.h"

namespace emulator {

namespace {

constexpr int kZero = -100000;  // below every exponent

// floor(log2|x|), also of subnormals.
int exponent_of(float x) {
  const u32 u = bits<u32>(x) & 0x7fffffffu;
  if (u == 0) return kZero;
  if (u >= 0x00800000u) return static_cast<int>(u >> 23) - 127;
  return -118 - __builtin_clz(u);
}

double scale_of(int exponent) { return bits<double>(static_cast<u64>(exponent + 1023) << 52); }

}  // namespace

double hopper_sum(const float* a, int stride_a, const float* b, int stride_b, int count, float sign,
                  float accumulator, SumRule rule, bool to_f16) {
  int top = exponent_of(accumulator);
  bool finite = std::isfinite(accumulator);
  for (int k = 0; k < count; ++k) {
    const float x = a[k * stride_a], y = b[k * stride_b];
    finite &= std::isfinite(x) && std::isfinite(y);
    if (x != 0 && y != 0) top = std::max(top, exponent_of(x) + exponent_of(y));
  }
  if (!finite) {
    float sum = accumulator;
    for (int k = 0; k < count; ++k) sum += sign * a[k * stride_a] * b[k * stride_b];
    return std::isnan(sum) ? bits<float>(0x7fffffffu) : sum;
  }
  if (top == kZero) return 0.0;
  // Scaled so that whole numbers are the multiples kept: all sums below are exact in a double.
  const double up = scale_of(rule.align_bits - top);
  double sum = std::trunc(static_cast<double>(accumulator) * up);
  for (int k = 0; k < count; ++k) {
    sum += std::trunc(static_cast<double>(sign * a[k * stride_a]) *
                      static_cast<double>(b[k * stride_b]) * up);
  }
  if (sum == 0) return 0.0;
  if (!to_f16) {
    const int high = static_cast<int>(bits<u64>(sum) >> 52 & 0x7ff) - 1023;
    if (high > rule.result_bits) {
      const double step = scale_of(high - rule.result_bits);
      sum = std::trunc(sum / step) * step;
    }
  }
  return sum * scale_of(top - rule.align_bits);
}

namespace {

constexpr int kM = 16, kN = 8, kMaxK = 32;

// args: [0] K, [1] number of A registers, [2] B registers, [3] C registers, [4] D registers.
// type: of A; type2: of B; args[5]: type of D as a Type. ops: D, A, B, C.
// Fragments, with g = lane / 4 and t = lane % 4 and P elements a register: A register r holds row
// g + 8 (r % 2), columns t P + 4 P (r / 2); B register r holds rows t P + 4 P r of column g.
Step mma(Machine& machine, Warp& warp, const Insn& insn, u32) {
  const int k_size = static_cast<int>(insn.args[0]);
  const int num_a = static_cast<int>(insn.args[1]), num_b = static_cast<int>(insn.args[2]);
  const int num_c = static_cast<int>(insn.args[3]), num_d = static_cast<int>(insn.args[4]);
  const auto d_type = static_cast<Type>(insn.args[5]);
  const Operand* d_ops = insn.ops.data();
  const Operand* a_ops = d_ops + num_d;
  const Operand* b_ops = a_ops + num_a;
  const Operand* c_ops = b_ops + num_b;
  const int width_a = insn.type == Type::k_tf32 ? 4 : static_cast<int>(type_bytes(insn.type));
  const int width_b = insn.type2 == Type::k_tf32 ? 4 : static_cast<int>(type_bytes(insn.type2));
  const int per_a = 4 / width_a, per_b = 4 / width_b;
  float a[kM][kMaxK] = {}, b[kMaxK][kN] = {};
  double c[kM][kN] = {};
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, t = l % 4;
    for (int r = 0; r < num_a; ++r) {
      const u32 v = warp.reg<u32>(a_ops[r])[l];
      for (int e = 0; e < per_a; ++e) {
        a[g + 8 * (r % 2)][t * per_a + e + 4 * per_a * (r / 2)] =
            decode_element(insn.type, v >> 8 * width_a * e);
      }
    }
    for (int r = 0; r < num_b; ++r) {
      const u32 v = warp.reg<u32>(b_ops[r])[l];
      for (int e = 0; e < per_b; ++e) {
        b[t * per_b + e + 4 * per_b * r][g] = decode_element(insn.type2, v >> 8 * width_b * e);
      }
    }
    for (int r = 0; r < num_c; ++r) {
      const u32 v = warp.reg<u32>(c_ops[r])[l];
      if (num_c == 4) {
        c[g + 8 * (r / 2)][t * 2 + r % 2] = d_type == Type::k_s32
                                                ? static_cast<double>(static_cast<s32>(v))
                                                : static_cast<double>(bits<float>(v));
      } else {
        c[g + 8 * r][t * 2] = f16_to_float(static_cast<u16>(v));
        c[g + 8 * r][t * 2 + 1] = f16_to_float(static_cast<u16>(v >> 16));
      }
    }
  }
  for (int row = 0; row < kM; ++row) {
    for (int col = 0; col < kN; ++col) {
      if (d_type == Type::k_s32) {
        double sum = c[row][col];
        for (int k = 0; k < k_size; ++k) sum += static_cast<double>(a[row][k]) * b[k][col];
        c[row][col] = sum;
      } else if (machine.options.hopper_accumulate) {
        c[row][col] = hopper_sum(a[row], 1, &b[0][col], kN, k_size, 1.0f,
                                 static_cast<float>(c[row][col]), sum_rule(false), num_d == 2);
      } else {
        float sum = 0;
        for (int k = 0; k < k_size; ++k) sum += a[row][k] * b[k][col];
        c[row][col] = static_cast<float>(c[row][col]) + sum;
      }
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, t = l % 4;
    for (int r = 0; r < num_d; ++r) {
      u32 v = 0;
      if (num_d == 4) {
        const double x = c[g + 8 * (r / 2)][t * 2 + r % 2];
        v = d_type == Type::k_s32 ? static_cast<u32>(static_cast<s64>(x))
                                  : bits<u32>(static_cast<float>(x));
      } else {
        v = double_to_f16(c[g + 8 * r][t * 2]) |
            static_cast<u32>(double_to_f16(c[g + 8 * r][t * 2 + 1])) << 16;
      }
      warp.reg<u32>(d_ops[r])[l] = v;
    }
  }
  machine.counters.mma_macs += static_cast<u64>(kM) * kN * static_cast<u64>(k_size);
  return Step::kNext;
}

Handler resolve_mma(const Insn& i) {
  const int k_size = static_cast<int>(i.args[0]);
  const int width_a = i.type == Type::k_tf32 ? 4 : static_cast<int>(type_bytes(i.type));
  const bool sizes_fit = k_size <= kMaxK && i.args[1] * 4 * kLanes == kM * k_size * width_a &&
                         i.args[2] * 4 * kLanes == kN * k_size * width_a;
  return sizes_fit ? mma : nullptr;
}

}  // namespace

void register_mma(Registry& r) { r.add("mma", resolve_mma, Convergence::kAligned); }

}  // namespace emulator
