// mma.sync on one warp: m16n8 with K of 4 to 32, floating point and 8-bit integers.

#include "tensor_core.h"

namespace emulator {

float hopper_sum(const float* products, int count, float accumulator) {
  int largest = -1000;
  for (int i = 0; i < count; ++i) {
    if (!std::isfinite(products[i])) return products[i] + accumulator;
    if (products[i] != 0) largest = std::max(largest, std::ilogb(products[i]));
  }
  if (!std::isfinite(accumulator)) return accumulator;
  if (accumulator != 0) largest = std::max(largest, std::ilogb(accumulator));
  if (largest == -1000) return 0.0f;
  const int scale = kKeptBits - largest;
  double sum = std::trunc(std::ldexp(static_cast<double>(accumulator), scale));
  for (int i = 0; i < count; ++i) {
    sum += std::trunc(std::ldexp(static_cast<double>(products[i]), scale));
  }
  if (sum == 0) return 0.0f;
  const int cut = std::ilogb(sum) - kKeptBits;
  const double kept = cut > 0 ? std::ldexp(std::trunc(std::ldexp(sum, -cut)), cut) : sum;
  return static_cast<float>(std::ldexp(kept, -scale));
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
  const bool fp8 = insn.type == Type::k_e4m3 || insn.type == Type::k_e5m2;
  for (int row = 0; row < kM; ++row) {
    for (int col = 0; col < kN; ++col) {
      if (d_type == Type::k_s32) {
        double sum = c[row][col];
        for (int k = 0; k < k_size; ++k) sum += static_cast<double>(a[row][k]) * b[k][col];
        c[row][col] = sum;
      } else if (fp8 && machine.options.hopper_accumulate) {
        float products[kMaxK];
        for (int k = 0; k < k_size; ++k) products[k] = a[row][k] * b[k][col];
        c[row][col] = hopper_sum(products, k_size, static_cast<float>(c[row][col]));
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
        v = float_to_f16(static_cast<float>(c[g + 8 * r][t * 2])) |
            static_cast<u32>(float_to_f16(static_cast<float>(c[g + 8 * r][t * 2 + 1]))) << 16;
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
