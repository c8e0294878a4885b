// cvt between every integer and float type, the packed narrow formats, and cvt.pack.
//
// args[0]: rounding 'n' nearest even, 'z' zero, 'm' down, 'p' up, 'a' away; 0 where none is
// written. args[1]: .sat, args[2]: .ftz, args[3]: .relu. Integer results of float sources clamp to
// the range of the type and NaN becomes 0, as PTX says.

#include "alu.h"

namespace emulator {
namespace {

double read_float(Warp& warp, const Operand& o, int lane, Type type) {
  switch (type) {
    case Type::k_f32:
      return warp.reg<float>(o)[lane];
    case Type::k_f64:
      return warp.reg<double>(o)[lane];
    case Type::k_f16:
      return f16_to_float(static_cast<u16>(warp.reg<u32>(o)[lane]));
    default:
      return bf16_to_float(static_cast<u16>(warp.reg<u32>(o)[lane]));
  }
}

s64 read_integer(Warp& warp, const Operand& o, int lane, Type type) {
  const u64 v = warp.value(o, lane);
  switch (type) {
    case Type::k_s8:
      return static_cast<s8>(v);
    case Type::k_s16:
      return static_cast<s16>(v);
    case Type::k_s32:
      return static_cast<s32>(v);
    case Type::k_u8:
      return static_cast<u8>(v);
    case Type::k_u16:
      return static_cast<u16>(v);
    case Type::k_u32:
      return static_cast<u32>(v);
    default:
      return static_cast<s64>(v);
  }
}

double to_integral(double v, char mode) {
  switch (mode) {
    case 'z':
      return std::trunc(v);
    case 'm':
      return std::floor(v);
    case 'p':
      return std::ceil(v);
    default:
      return std::nearbyint(v);
  }
}

u64 float_to_integer(double v, Type type, char mode) {
  // A NaN gives 0, in 64 bits the sign bit alone, as seen on an H100.
  if (std::isnan(v)) return type_bytes(type) == 8 ? 1ull << 63 : 0;
  const int width = static_cast<int>(8 * type_bytes(type));
  const double integral = to_integral(v, mode);
  if (is_signed(type)) {
    const double limit = std::ldexp(1.0, width - 1);
    if (integral >= limit) return static_cast<u64>((1ull << (width - 1)) - 1);
    if (integral < -limit) return ~0ull << (width - 1);
    return static_cast<u64>(static_cast<s64>(integral));
  }
  if (integral <= 0) return 0;
  if (integral >= std::ldexp(1.0, width)) return ~0ull >> (64 - width);
  return static_cast<u64>(integral);
}

void write_integer(Warp& warp, const Operand& o, int lane, u64 v, Type type) {
  const u32 bytes = type_bytes(type);
  // A destination wider than the type is filled by sign; what a 16-bit register holds above its
  // width is never looked at.
  if (is_signed(type) && o.kind == OperandKind::kReg32 && bytes <= 2) {
    v = static_cast<u32>(bytes == 1 ? s32{static_cast<s8>(v)} : s32{static_cast<s16>(v)});
  } else if (bytes < 8) {
    v &= ~0ull >> (64 - 8 * bytes);
  }
  warp.set(o, lane, v);
}

u64 saturate_integer(s64 v, bool unsigned_source, Type type) {
  const int width = static_cast<int>(8 * type_bytes(type));
  if (is_signed(type)) {
    if (width == 64) return unsigned_source && v < 0 ? INT64_MAX : static_cast<u64>(v);
    const s64 top = (1ll << (width - 1)) - 1;
    if (unsigned_source && v < 0) return static_cast<u64>(top);
    return static_cast<u64>(std::min(std::max(v, -top - 1), top));
  }
  if (v < 0 && !unsigned_source) return 0;
  const u64 top = ~0ull >> (64 - width);
  return std::min(static_cast<u64>(v), top);
}

u32 narrow(double v, Type type, char mode) {
  const float f = static_cast<float>(v);
  switch (type) {
    case Type::k_f16:
      if (std::isnan(v)) return kNanF16;
      return mode == 'z' ? float_to_f16_zero(f) : double_to_f16(v);
    case Type::k_bf16:
      return mode == 'z' ? float_to_bf16_zero(f) : float_to_bf16(f);
    case Type::k_tf32:
      return mode == 'z' ? bits<u32>(f) & 0xffffe000u : float_to_tf32(f);
    default:
      return 0;
  }
}

void write_float(Warp& warp, const Operand& o, int lane, double v, Type type, char mode) {
  switch (type) {
    case Type::k_f64:
      warp.reg<double>(o)[lane] = v;
      break;
    case Type::k_f32:
      warp.reg<float>(o)[lane] = F32::put(double_to_float(v, mode));
      break;
    default:
      warp.reg<u32>(o)[lane] = narrow(v, type, mode);
      break;
  }
}

Step convert(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const Type to = insn.type, from = insn.type2;
  const char mode = insn.args[0] == 0 ? 'n' : static_cast<char>(insn.args[0]);
  const bool sat = insn.args[1] != 0, ftz = insn.args[2] != 0, relu = insn.args[3] != 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const Operand& d = insn.ops[0];
    const Operand& a = insn.ops[1];
    if (is_float(from)) {
      double v = read_float(warp, a, l, from);
      if (ftz && from == Type::k_f32) v = flush(static_cast<float>(v));
      if (!is_float(to)) {
        write_integer(warp, d, l, float_to_integer(v, to, insn.args[0] == 0 ? 'z' : mode), to);
        continue;
      }
      // A rounding on a conversion that does not narrow asks for an integral value.
      if (insn.args[0] != 0 && type_bytes(from) == type_bytes(to) && from == to) {
        v = to_integral(v, mode);
      }
      if (sat) v = v > 0 ? std::min(v, 1.0) : 0.0;
      if (relu && !(v > 0)) v = std::isnan(v) ? v : 0.0;
      write_float(warp, d, l, v, to, mode);
    } else if (is_float(to)) {
      const s64 v = read_integer(warp, a, l, from);
      const bool big = from == Type::k_u64 && v < 0;
      if (to == Type::k_f32 && mode == 'n') {
        // Through a double a 64-bit integer would round twice.
        warp.reg<float>(d)[l] =
            big ? static_cast<float>(static_cast<u64>(v)) : static_cast<float>(v);
      } else {
        write_float(warp, d, l,
                    big ? static_cast<double>(static_cast<u64>(v)) : static_cast<double>(v), to,
                    mode);
      }
    } else {
      const s64 v = read_integer(warp, a, l, from);
      write_integer(warp, d, l,
                    sat ? saturate_integer(v, !is_signed(from), to) : static_cast<u64>(v), to);
    }
  }
  return Step::kNext;
}

// Two floats into one packed pair: the first source is the upper half.
Step pack_pair(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const bool zero = insn.args[0] == 'z', relu = insn.args[3] != 0;
  const auto narrow_one = [&](float f) -> u32 {
    if (relu && !(f > 0)) f = std::isnan(f) ? f : 0.0f;
    switch (insn.type) {
      case Type::k_f16x2:
        if (std::isnan(f)) return kNanF16;
        return zero ? float_to_f16_zero(f) : float_to_f16(f);
      case Type::k_bf16x2:
        return zero ? float_to_bf16_zero(f) : float_to_bf16(f);
      case Type::k_e4m3x2:
        return float_to_e4m3(f);
      default:
        return float_to_e5m2(f);
    }
  };
  const int shift = type_bytes(insn.type) == 4 ? 16 : 8;
  const float* high = warp.reg<float>(insn.ops[1]);
  const float* low = warp.reg<float>(insn.ops[2]);
  for (int l = 0; l < kLanes; ++l) {
    if (has_lane(mask, l)) {
      warp.reg<u32>(insn.ops[0])[l] = narrow_one(high[l]) << shift | narrow_one(low[l]);
    }
  }
  return Step::kNext;
}

// f16x2 to fp8x2, and fp8x2 to f16x2 (exact, so rounding does not matter).
Step repack_pair(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const bool relu = insn.args[3] != 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const u32 v = warp.reg<u32>(insn.ops[1])[l];
    u32 result = 0;
    for (int half = 0; half < 2; ++half) {
      if (insn.type == Type::k_f16x2) {
        const auto& table = insn.type2 == Type::k_e4m3x2 ? kE4m3ToFloat : kE5m2ToFloat;
        float f = table[v >> 8 * half & 255u];
        if (relu && !(f > 0)) f = std::isnan(f) ? f : 0.0f;
        result |= F16::put(f) << 16 * half;
      } else {
        float f = f16_to_float(static_cast<u16>(v >> 16 * half));
        if (relu && !(f > 0)) f = std::isnan(f) ? f : 0.0f;
        const u32 code = insn.type == Type::k_e4m3x2 ? float_to_e4m3(f) : float_to_e5m2(f);
        result |= code << 8 * half;
      }
    }
    warp.reg<u32>(insn.ops[0])[l] = result;
  }
  return Step::kNext;
}

// cvt.pack.sat: two 32-bit integers saturated into the low end, c's bits shifted up.
Step pack_integers(Machine&, Warp& warp, const Insn& insn, u32 mask) {
  const u32 width = 8 * type_bytes(insn.type);
  const u32 ones = width == 16 ? 0xffffu : 0xffu;
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    const u64 high =
        saturate_integer(read_integer(warp, insn.ops[1], l, Type::k_s32), false, insn.type);
    const u64 low =
        saturate_integer(read_integer(warp, insn.ops[2], l, Type::k_s32), false, insn.type);
    const u32 rest = insn.ops.size() > 3 ? warp.reg<u32>(insn.ops[3])[l] << 2 * width : 0;
    warp.reg<u32>(insn.ops[0])[l] =
        (static_cast<u32>(high) & ones) << width | (static_cast<u32>(low) & ones) | rest;
  }
  return Step::kNext;
}

struct Same {
  template <class T>
  static T run(T a) {
    return a;
  }
};
// bf16 to fp32 is a shift, NaN payloads included.
struct Widen {
  static u32 run(u32 a) { return a << 16; }
};
template <bool kZero>
struct ToTf32 {
  static u32 run(u32 a) { return kZero ? a & 0xffffe000u : float_to_tf32(bits<float>(a)); }
};
struct Narrow {
  static u32 run(u64 a) { return static_cast<u32>(a); }
};

Handler resolve_convert(const Insn& i) {
  const Type to = i.type, from = i.type2;
  const bool to_pair =
      to == Type::k_f16x2 || to == Type::k_bf16x2 || to == Type::k_e4m3x2 || to == Type::k_e5m2x2;
  if (to_pair) {
    if (i.ops.size() == 3) return from == Type::k_f32 ? pack_pair : nullptr;
    const bool from_fp8 = from == Type::k_e4m3x2 || from == Type::k_e5m2x2;
    const bool to_fp8 = to == Type::k_e4m3x2 || to == Type::k_e5m2x2;
    if (to == Type::k_f16x2 && from_fp8) return repack_pair;
    return to_fp8 && from == Type::k_f16x2 ? repack_pair : nullptr;
  }
  const auto scalar = [](Type t) {
    return is_float(t) ||
           (t >= Type::k_u8 && t <= Type::k_s64 && t != Type::k_f16x2 && t != Type::k_bf16x2);
  };
  if (!scalar(to) || !scalar(from) || from == Type::k_tf32 || i.ops.size() != 2) return nullptr;
  if (to == Type::k_f32 && from == Type::k_bf16 && i.args[1] == 0 && i.args[3] == 0) {
    return unary<U32, U32, Widen>;
  }
  if (to == Type::k_tf32 && from == Type::k_f32 && i.args[3] == 0) {
    return i.args[0] == 'z' ? unary<U32, U32, ToTf32<true>> : unary<U32, U32, ToTf32<false>>;
  }
  // The widenings and truncations of every address computation, between registers of just that
  // width: cvt also takes wider ones.
  if (i.args[1] == 0) {
    const bool wide_source = i.ops[1].kind == OperandKind::kReg64;
    const bool wide_result = i.ops[0].kind == OperandKind::kReg64;
    if (to == Type::k_u64 && from == Type::k_u32 && !wide_source) return unary<U64, U32, Same>;
    if (to == Type::k_s64 && from == Type::k_s32 && !wide_source) return unary<S64, S32, Same>;
    if (to == Type::k_u32 && from == Type::k_u64 && !wide_result) return unary<U32, U64, Narrow>;
  }
  return convert;
}

}  // namespace

void register_convert(Registry& r) {
  r.add("cvt", resolve_convert);
  r.add("cvt_pack",
        [](const Insn& i) -> Handler { return type_bytes(i.type) <= 2 ? pack_integers : nullptr; });
}

}  // namespace emulator
