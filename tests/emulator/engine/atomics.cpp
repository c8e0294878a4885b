// atom and red, scalar and vector.
//
// args: [0] operation, [1] space, [2] Ordering, [3] vector elements.
// ops: destinations (none for red), address, operands, and for cas the new value.

#include "access.h"
#include "alu.h"

namespace emulator {

// The order is the encoding, shared with the front end and the bulk reductions.
u64 apply_atomic(AtomicOp op, Type type, u64 old, u64 b, u64 c) {
  switch (op) {
    case AtomicOp::kExch:
      return b;
    case AtomicOp::kCas:
      return old == b ? c : old;
    case AtomicOp::kAnd:
      return old & b;
    case AtomicOp::kOr:
      return old | b;
    case AtomicOp::kXor:
      return old ^ b;
    case AtomicOp::kInc:
      return old >= b ? 0 : old + 1;
    case AtomicOp::kDec:
      return old == 0 || old > b ? b : old - 1;
    default:
      break;
  }
  const auto on_floats = [op](auto x, auto y) {
    if (op == AtomicOp::kAdd) return x + y;
    if (std::isnan(x)) return y;
    if (std::isnan(y)) return x;
    return op == AtomicOp::kMin ? (y < x ? y : x) : (y > x ? y : x);
  };
  const auto f16 = [&](u64 x, u64 y) -> u64 {
    return float_to_f16(
        on_floats(f16_to_float(static_cast<u16>(x)), f16_to_float(static_cast<u16>(y))));
  };
  const auto bf16 = [&](u64 x, u64 y) -> u64 {
    return float_to_bf16(
        on_floats(bf16_to_float(static_cast<u16>(x)), bf16_to_float(static_cast<u16>(y))));
  };
  switch (type) {
    case Type::k_f32:
      return bits<u32>(
          on_floats(bits<float>(static_cast<u32>(old)), bits<float>(static_cast<u32>(b))));
    case Type::k_f64:
      return bits<u64>(on_floats(bits<double>(old), bits<double>(b)));
    case Type::k_f16:
      return f16(old, b);
    case Type::k_bf16:
      return bf16(old, b);
    case Type::k_f16x2:
      return f16(old, b) | f16(old >> 16, b >> 16) << 16;
    case Type::k_bf16x2:
      return bf16(old, b) | bf16(old >> 16, b >> 16) << 16;
    default:
      break;
  }
  if (op == AtomicOp::kAdd) return old + b;
  bool less = b < old;
  if (type == Type::k_s32) less = static_cast<s32>(b) < static_cast<s32>(old);
  if (type == Type::k_s64) less = static_cast<s64>(b) < static_cast<s64>(old);
  return less == (op == AtomicOp::kMin) ? b : old;
}

namespace {

Step atomic(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const auto op = static_cast<AtomicOp>(insn.args[0]);
  const auto space = static_cast<Space>(insn.args[1]);
  const auto order = static_cast<Ordering>(insn.args[2]);
  const u32 num = static_cast<u32>(insn.args[3]);
  const bool acquire = order == Ordering::kAcquire || order == Ordering::kAcquireRelease;
  const bool release = order == Ordering::kRelease || order == Ordering::kAcquireRelease;
  const u32 element = type_bytes(insn.type);
  const u32 span = element * num;
  const Operand& where = insn.ops[num];
  for (int l = 0; l < kLanes; ++l) {
    if (!has_lane(mask, l)) continue;
    u64 address = warp.address(where, l);
    const Space actual = machine.resolve(warp, space, address);
    const Actor actor = machine.actor(warp, static_cast<u32>(l), true);
    u8* memory = nullptr;
    if (actual == Space::kShared) {
      const auto target = machine.shared_target(warp, static_cast<u32>(address), span, "atomic");
      if (target.offset % span != 0) {
        machine.fault(
            &warp, "MISALIGNED",
            format("atomic: shared address 0x%x is not a multiple of %u", target.offset, span));
      }
      machine.access_shared(warp, target, span, false, actor, "atomic");
      memory = machine.access_shared(warp, target, span, true, actor, "atomic");
      synchronise_location(machine, warp, shared_key(target), true, true, true, acquire, release);
    } else if (actual == Space::kGlobal) {
      machine.access_global(warp, address, span, false, actor, "atomic", span);
      memory = machine.access_global(warp, address, span, true, actor, "atomic", span);
      synchronise_location(machine, warp, address, false, true, true, acquire, release);
    } else {
      machine.fault(&warp, "BOUNDS", "atomic outside shared and global memory");
    }
    for (u32 k = 0; k < num; ++k) {
      u64 old = 0;
      std::memcpy(&old, memory + k * element, element);
      const u64 b = warp.value(insn.ops[num + 1 + k], l);
      const u64 c = op == AtomicOp::kCas ? warp.value(insn.ops[num + 2], l) : 0;
      // Narrow operands must not compare by what lies above them in their registers.
      const u64 ones = ~0ull >> (64 - 8 * element);
      const u64 next = apply_atomic(op, insn.type, old, b & ones, c & ones);
      std::memcpy(memory + k * element, &next, element);
      warp.set(insn.ops[k], l, old);
    }
  }
  ++machine.counters.atomics;
  ++machine.progress;
  return Step::kYield;
}

}  // namespace

void register_atomics(Registry& r) {
  r.add("atom", [](const Insn& i) -> Handler {
    return type_bytes(i.type) <= 8 && i.args[3] >= 1 && i.args[3] <= 8 ? atomic : nullptr;
  });
}

}  // namespace emulator
