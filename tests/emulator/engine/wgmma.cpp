// wgmma: descriptors, operands from shared memory or registers, groups and register rules.
//
// One warp computes its 16 rows of the m64 tile. By default sums run in k order in fp32 and are
// added once to the accumulator, which is quick and closer to the exact sum than the hardware; with
// hopper_accumulate they follow the hardware's own rule bit by bit.

#include "tensor_core.h"
#include "tensor_map.h"

namespace emulator {
namespace {

constexpr int kRows = 16, kMaxN = 256, kMaxK = 32;
constexpr u32 kInstructionKBytes = 32;  // every wgmma takes 32 bytes of K

// args: [0] N, [1] K, [2] type of D, [3] A in registers, [4] negate A, [5] negate B,
// [6] A is MN-major, [7] B is MN-major, [8] D registers, [9] scale-d is an immediate (0, 1) or -1.
// ops: D, A (descriptor or registers), B descriptor, scale-d.
struct Form {
  u32 n, k;
  Type d_type;
  bool a_in_registers, negate_a, negate_b, a_mn_major, b_mn_major;
  u32 num_d;
  explicit Form(const Insn& i)
      : n(static_cast<u32>(i.args[0])),
        k(static_cast<u32>(i.args[1])),
        d_type(static_cast<Type>(i.args[2])),
        a_in_registers(i.args[3] != 0),
        negate_a(i.args[4] != 0),
        negate_b(i.args[5] != 0),
        a_mn_major(i.args[6] != 0),
        b_mn_major(i.args[7] != 0),
        num_d(static_cast<u32>(i.args[8])) {}
  u32 num_a() const { return a_in_registers ? 4 : 1; }
};

// Matrix descriptor: start address, leading and stride byte offsets (each 14 bits of 16 bytes),
// base offset (bits 49-51), swizzle mode (bits 62-63).
struct Descriptor {
  u32 start, leading, stride, mode;
  explicit Descriptor(u64 d)
      : start(static_cast<u32>(d & 0x3fff) << 4),
        leading(static_cast<u32>(d >> 16 & 0x3fff) << 4),
        stride(static_cast<u32>(d >> 32 & 0x3fff) << 4),
        mode(static_cast<u32>(d >> 62)) {}

  // The descriptor counts swizzle modes the other way round than the span: 1 is 128 bytes.
  u32 span_log() const { return mode == 0 ? 0 : 4 - mode; }

  // Shared address of the 16 bytes that hold element (row, k_byte), K running fastest. Eight rows
  // make a group; groups are `stride` apart. Without swizzle, rows are 16 bytes and the two halves
  // of K are `leading` apart.
  u32 k_major(u32 row, u32 k_byte) const {
    if (mode == 0) {
      return start + row / 8 * stride + row % 8 * 16 + k_byte / 16 * leading + k_byte % 16;
    }
    const u32 pitch = 16u << span_log();
    return swizzle_address(start + row / 8 * stride + row % 8 * pitch + k_byte, span_log());
  }
  // The same with rows (M or N) running fastest, 16-bit elements. A span of rows is contiguous,
  // spans are `leading` apart; eight k make a group, groups are `stride` apart. Without swizzle the
  // span is 8 rows, spans are `stride` apart and groups of k `leading`.
  u32 mn_major(u32 row, u32 k) const {
    if (mode == 0) return start + row / 8 * stride + row % 8 * 2 + k % 8 * 16 + k / 8 * leading;
    const u32 pitch = 16u << span_log();
    const u32 rows_per_span = pitch / 2;
    return swizzle_address(start + row / rows_per_span * leading + row % rows_per_span * 2 +
                               k % 8 * pitch + k / 8 * stride,
                           span_log());
  }
};

constexpr u64 kReservedBits = 0x3ff1c000c000c000ull;

void check_descriptor(Machine& machine, Warp& warp, u64 d, const char* which) {
  if ((d & kReservedBits) != 0) {
    machine.report(&warp, "DESCRIPTOR", 0,
                   format("%s descriptor 0x%016llx has reserved bits set", which,
                          static_cast<unsigned long long>(d)));
  }
  if ((d >> 49 & 7u) != 0) {
    machine.report(&warp, "DESCRIPTOR", 0,
                   format("%s descriptor: base offset %u, expected 0 (tiles aligned to the swizzle "
                          "pattern)",
                          which, static_cast<u32>(d >> 49 & 7u)));
  }
}

u64 uniform(Machine& machine, Warp& warp, const Operand& o, const char* which) {
  const u64* d = warp.reg<u64>(o);
  for (int l = 1; l < kLanes; ++l) {
    if (d[l] != d[0]) {
      machine.fault(&warp, "DESCRIPTOR", format("the %s descriptor differs between lanes", which));
    }
  }
  return d[0];
}

// Visits the 16-byte chunks of rows [first, first + count) of an operand.
template <class F>
void for_each_chunk(const Descriptor& d, bool mn_major, u32 first, u32 count, u32 k, F f) {
  if (mn_major) {
    for (u32 kk = 0; kk < k; ++kk) {
      for (u32 row = 0; row < count; row += 8) f(d.mn_major(first + row, kk), row, kk);
    }
  } else {
    for (u32 row = 0; row < count; ++row) {
      for (u32 byte = 0; byte < kInstructionKBytes; byte += 16) {
        f(d.k_major(first + row, byte), row, byte);
      }
    }
  }
}

void judge_operand(Machine& machine, Warp& warp, u64 raw, bool mn_major, u32 first, u32 count,
                   u32 k, const Actor& actor, const char* which) {
  const Descriptor d(raw);
  Cta& cta = *warp.cta;
  for_each_chunk(d, mn_major, first, count, k, [&](u32 address, u32 row, u32) {
    if (address < kSharedStart || address + 16 > cta.shared.size()) {
      machine.fault(&warp, "BOUNDS",
                    format("wgmma: row %u of %s lies at shared 0x%x, outside [0x%x, 0x%zx)",
                           first + row, which, address, kSharedStart, cta.shared.size()));
    }
    machine.access_shared(warp, {&cta, address}, 16, false, actor, which);
  });
}

// out[k][row] for rows of the operand, as floats.
template <int kRowsMax>
void decode_operand(const Cta& cta, u64 raw, bool mn_major, Type type, u32 first, u32 count, u32 k,
                    float (*out)[kRowsMax]) {
  const Descriptor d(raw);
  const u32 width = type == Type::k_tf32 ? 4 : type_bytes(type);
  for_each_chunk(d, mn_major, first, count, k, [&](u32 address, u32 row, u32 at) {
    const u8* from = cta.shared.data() + address;
    for (u32 i = 0; i < 16 / width; ++i) {
      u32 v = 0;
      std::memcpy(&v, from + i * width, width);
      const float f = decode_element(type, v);
      if (mn_major) {
        out[at][row + i] = f;
      } else {
        out[at / width + i][row] = f;
      }
    }
  });
}

// Decoded B tiles are kept while shared memory does not change: four warps share each of them.
struct OperandCache {
  const Cta* cta = nullptr;
  u64 version = 0, descriptor = 0;
  const Insn* insn = nullptr;
  float b[kMaxK][kMaxN];
};
thread_local OperandCache operand_cache;

void decode_a_registers(Warp& warp, const Insn& insn, const Form& form, float (*a)[kRows]) {
  const u32 width = type_bytes(insn.type);
  const u32 per = 4 / width;
  for (u32 r = 0; r < 4; ++r) {
    const u32* v = warp.reg<u32>(insn.ops[form.num_d + r]);
    for (u32 l = 0; l < kLanes; ++l) {
      for (u32 e = 0; e < per; ++e) {
        a[l % 4 * per + e + 4 * per * (r / 2)][l / 4 + 8 * (r % 2)] =
            decode_element(insn.type, v[l] >> 8 * width * e);
      }
    }
  }
}

void compute(Machine& machine, Warp& warp, const Insn& insn, u64 a_desc, u64 b_desc, bool add) {
  const Form form(insn);
  float a[kMaxK][kRows];
  if (form.a_in_registers) {
    decode_a_registers(warp, insn, form, a);
  } else {
    decode_operand<kRows>(*warp.cta, a_desc, form.a_mn_major, insn.type, (warp.index & 3u) * kRows,
                          kRows, form.k, a);
  }
  OperandCache& cache = operand_cache;
  if (cache.cta != warp.cta || cache.version != warp.cta->shared_version ||
      cache.descriptor != b_desc || cache.insn != &insn) {
    decode_operand<kMaxN>(*warp.cta, b_desc, form.b_mn_major, insn.type2, 0, form.n, form.k,
                          cache.b);
    cache.cta = warp.cta;
    cache.version = warp.cta->shared_version;
    cache.descriptor = b_desc;
    cache.insn = &insn;
  }
  const float sign = form.negate_a != form.negate_b ? -1.0f : 1.0f;
  const bool fp8 = type_bytes(insn.type) == 1;
  const bool cut = machine.options.hopper_accumulate;
  const bool to_f16 = form.d_type == Type::k_f16;
  alignas(64) float sums[kRows][kMaxN];
  for (u32 row = 0; row < kRows; ++row) {
    float* sum = sums[row];
    for (u32 n = 0; n < form.n; ++n) sum[n] = 0;
    if (cut) continue;
    for (u32 k = 0; k < form.k; ++k) {
      const float x = a[k][row] * sign;
      const float* b = cache.b[k];
      for (u32 n = 0; n < form.n; ++n) sum[n] += x * b[n];
    }
  }
  const auto finish = [&](u32 row, u32 n, float accumulator) -> double {
    if (!cut) return accumulator + sums[row][n];
    return hopper_sum(&a[0][row], kRows, &cache.b[0][n], kMaxN, static_cast<int>(form.k), sign,
                      accumulator, sum_rule(fp8), to_f16);
  };
  for (u32 j = 0; j < form.num_d; ++j) {
    u32* d = warp.reg<u32>(insn.ops[j]);
    for (u32 l = 0; l < kLanes; ++l) {
      if (!to_f16) {
        const u32 row = l / 4 + 8 * (j / 2 % 2), n = j / 4 * 8 + l % 4 * 2 + j % 2;
        d[l] = bits<u32>(static_cast<float>(finish(row, n, add ? bits<float>(d[l]) : 0.0f)));
      } else {
        const u32 row = l / 4 + 8 * (j % 2), n = j / 2 * 8 + l % 4 * 2;
        const double low = finish(row, n, add ? f16_to_float(static_cast<u16>(d[l])) : 0.0f);
        const double high =
            finish(row, n + 1, add ? f16_to_float(static_cast<u16>(d[l] >> 16)) : 0.0f);
        d[l] = double_to_f16(low) | static_cast<u32>(double_to_f16(high)) << 16;
      }
    }
  }
}

constexpr u16 kAccumulator = 0x100;

void check_wgmma_registers(Machine& machine, Warp& warp, const Insn& insn, const Form& form) {
  const u32 num = form.num_d + (form.a_in_registers ? 4 : 0);
  bool reported = false;
  for (u32 i = 0; i < num; ++i) {
    const Operand& o = insn.ops[i];
    if (o.bank != 0) continue;
    const u32 word = o.offset / kLanes;
    if (warp.wgmma_dirty[word] && !reported) {
      machine.report(&warp, "WGMMA", 0,
                     "a register of this wgmma was written since the last wgmma.fence");
      reported = true;
    }
    if (i >= form.num_d && warp.wgmma_in_flight[word] >= kAccumulator) {
      machine.report(&warp, "WGMMA", 1, "an A register is the accumulator of a wgmma in flight");
    }
  }
  if (reported) std::fill(warp.wgmma_dirty.begin(), warp.wgmma_dirty.end(), 0);
  for (u32 i = 0; i < num; ++i) {
    if (insn.ops[i].bank != 0) continue;
    warp.wgmma_in_flight[insn.ops[i].offset / kLanes] += i < form.num_d ? kAccumulator : 1;
  }
  ++warp.num_in_flight;
  warp.wgmma_pending.emplace_back(warp.wgmma_groups, &insn);
}

Step issue(Machine& machine, Warp& warp, const Insn& insn, u32 mask) {
  const Form form(insn);
  const Operand* a_op = &insn.ops[form.num_d];
  const Operand* b_op = a_op + form.num_a();
  const u64 a_desc = form.a_in_registers ? 0 : uniform(machine, warp, *a_op, "A");
  const u64 b_desc = uniform(machine, warp, *b_op, "B");
  const Operand& scale = insn.ops[form.num_d + form.num_a() + 1];
  const bool add = scale.kind == OperandKind::kPred || scale.kind == OperandKind::kNotPred
                       ? has_lane(warp.pred(scale), first_lane(mask))
                       : warp.value(scale, first_lane(mask)) != 0;
  Actor actor = machine.actor(warp);
  actor.async = true;
  actor.who = warp.who(kWgmmaAgent);
  actor.value = warp.wgmma_groups + 1;
  if (!form.a_in_registers) {
    check_descriptor(machine, warp, a_desc, "A");
    judge_operand(machine, warp, a_desc, form.a_mn_major, (warp.index & 3u) * kRows, kRows, form.k,
                  actor, "wgmma A");
  }
  check_descriptor(machine, warp, b_desc, "B");
  judge_operand(machine, warp, b_desc, form.b_mn_major, 0, form.n, form.k, actor, "wgmma B");
  check_wgmma_registers(machine, warp, insn, form);
  AsyncOp work{AsyncKind::kWgmma, &warp, warp.wgmma_groups, 0, nullptr};
  const Insn* kept = &insn;
  Warp* self = &warp;
  work.run = [self, kept, a_desc, b_desc, add](Machine& m) {
    compute(m, *self, *kept, a_desc, b_desc, add);
  };
  machine.issue(std::move(work));
  ++machine.counters.wgmma_instructions;
  machine.counters.wgmma_macs += static_cast<u64>(kRows) * form.n * form.k;
  return Step::kNext;
}

Step fence(Machine&, Warp& warp, const Insn&, u32) {
  std::fill(warp.wgmma_dirty.begin(), warp.wgmma_dirty.end(), 0);
  return Step::kNext;
}

void wake_warpgroup(Warp& warp) {
  for (const auto& peer : warp.cta->warps) {
    if (peer->index / 4 == warp.index / 4 && peer->state == WarpState::kAtWgmma) {
      peer->state = WarpState::kRunnable;
    }
  }
}

Step commit(Machine& machine, Warp& warp, const Insn&, u32) {
  ++warp.wgmma_groups;
  ++machine.progress;
  wake_warpgroup(warp);
  return Step::kNext;
}

// args[0]: groups that may stay pending.
Step wait(Machine& machine, Warp& warp, const Insn& insn, u32) {
  const u32 keep = static_cast<u32>(insn.args[0]);
  if (warp.wgmma_groups <= keep) return Step::kNext;
  const u32 reached = warp.wgmma_groups - keep;
  for (const auto& peer : warp.cta->warps) {
    if (peer->index / 4 == warp.index / 4 && peer->wgmma_groups < reached &&
        peer->state != WarpState::kDone) {
      warp.state = WarpState::kAtWgmma;
      return Step::kBlocked;
    }
  }
  for (const auto& peer : warp.cta->warps) {
    if (peer->index / 4 == warp.index / 4) machine.flush(*peer, AsyncKind::kWgmma, reached);
  }
  auto& pending = warp.wgmma_pending;
  while (!pending.empty() && pending.front().first < reached) {
    const Insn& done = *pending.front().second;
    const Form form(done);
    const u32 num = form.num_d + (form.a_in_registers ? 4 : 0);
    for (u32 i = 0; i < num; ++i) {
      if (done.ops[i].bank != 0) continue;
      u16& mark = warp.wgmma_in_flight[done.ops[i].offset / kLanes];
      const u16 step = i < form.num_d ? kAccumulator : 1;
      // A report has cleared the mark already.
      mark = mark >= step ? static_cast<u16>(mark - step) : 0;
    }
    --warp.num_in_flight;
    pending.pop_front();
  }
  warp.know.seen.raise(warp.who(kWgmmaAgent), reached);
  warp.know.async.raise(warp.who(kWgmmaAgent), reached);
  warp.tick();
  return Step::kNext;
}

Handler resolve_wgmma(const Insn& i) {
  const Form form(i);
  const u32 width = i.type == Type::k_tf32 ? 4 : type_bytes(i.type);
  const bool shape =
      form.n >= 8 && form.n <= kMaxN && form.n % 8 == 0 && form.k * width == kInstructionKBytes;
  const bool majors = width == 2 || (!form.a_mn_major && !form.b_mn_major);
  const bool d = form.num_d == form.n / (form.d_type == Type::k_f16 ? 4 : 2) &&
                 (form.d_type == Type::k_f32 || form.d_type == Type::k_f16);
  return shape && majors && d ? issue : nullptr;
}

}  // namespace

void register_wgmma(Registry& r) {
  const auto aligned = Convergence::kAligned;
  r.add("wgmma", resolve_wgmma, aligned);
  r.add("wgmma_fence", [](const Insn&) -> Handler { return fence; }, aligned);
  r.add("wgmma_commit", [](const Insn&) -> Handler { return commit; }, aligned);
  r.add("wgmma_wait", [](const Insn&) -> Handler { return wait; }, aligned);
}

}  // namespace emulator
