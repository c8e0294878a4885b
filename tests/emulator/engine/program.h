// The decoded program: one flat list of instructions, each bound to the function that runs it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "types.h"

namespace emulator {

class Machine;
struct Warp;
struct Insn;

// What the scheduler does after an instruction ran for a mask of lanes.
enum class Step : u8 {
  kNext,     // go on
  kBlocked,  // nothing happened, try this instruction again later
  kYield,    // done, but let another warp run
  kJumped,   // the handler moved the program counters itself
};

using Handler = Step (*)(Machine&, Warp&, const Insn&, u32 mask);
// Picks the handler for one form; nullptr means the form is not supported.
using Resolver = Handler (*)(const Insn&);

enum class OperandKind : u8 { kNone, kReg32, kReg64, kPred, kNotPred, kReg128 };

struct Operand {
  OperandKind kind = OperandKind::kNone;
  u8 bank = 0;     // 0 the warp's registers, 1 constants shared by all warps
  u32 offset = 0;  // in 32-bit words for registers; an index for predicates
  s64 imm = 0;     // added to the register where the operand is an address
};

// Which lanes must come together before the instruction may run.
enum class Convergence : u8 { kNone, kAligned, kMemberMask };

struct Insn {
  Handler handler = nullptr;
  Type type = Type::k_b32;
  Type type2 = Type::k_b32;
  Convergence convergence = Convergence::kNone;
  bool predicated = false;
  bool pred_negated = false;
  bool checks_definedness = false;  // reads a register that some path leaves undefined
  bool tracks_definedness = false;  // writes such a register
  bool touches_wgmma_registers = false;
  u32 pred = 0;
  u32 pc = 0;
  s32 target = -1;
  u32 num_dests = 1;  // the first operands, which are written
  std::vector<Operand> ops;
  std::vector<s64> args;  // meaning is the opcode's own: modes, immediates, counts
  std::string opcode;     // the engine's name
  std::string text;       // the PTX as written
  u32 ptx_line = 0;
  std::string source;  // "file.cu:12", empty without -lineinfo
};

struct SpecialRegister {
  std::string name;
  u32 offset;  // in words
  bool wide;
};

struct Program {
  std::string name;
  std::vector<Insn> insns;
  std::vector<u32> constants;  // bank 1, each value repeated for 32 lanes
  std::vector<SpecialRegister> specials;
  u32 num_words = 0;  // 32-bit registers per lane
  u32 num_preds = 0;
  u32 static_shared_bytes = 0;
  u32 dynamic_shared_align = 16;
  u32 local_bytes = 0;
  u32 param_bytes = 0;
  u32 registers_per_thread = 168;
  bool tracks_definedness = false;
  std::vector<bool> suspects;  // register words that some path may read before writing

  // "file.cu:12 (PTX line 340: mov.u32 ...)"
  std::string location(u32 pc) const;
  // Binds handlers and finds possibly undefined registers; throws LoadError.
  void finish();
};

class Registry {
 public:
  static const Registry& instance();
  void add(const std::string& opcode, Resolver resolver,
           Convergence convergence = Convergence::kNone);
  void bind(Insn& insn) const;  // throws LoadError
  std::vector<std::string> names() const;

 private:
  struct Entry {
    Resolver resolver;
    Convergence convergence;
  };
  Registry();
  std::map<std::string, Entry> entries_;
};

void find_undefined_registers(Program& program);

void register_integer(Registry&);
void register_float(Registry&);
void register_bits(Registry&);
void register_convert(Registry&);
void register_moves(Registry&);
void register_control(Registry&);
void register_access(Registry&);
void register_atomics(Registry&);
void register_warp_ops(Registry&);
void register_barriers(Registry&);
void register_fences(Registry&);
void register_mbarrier(Registry&);
void register_cp_async(Registry&);
void register_tma(Registry&);
void register_bulk(Registry&);
void register_matrix(Registry&);
void register_mma(Registry&);
void register_wgmma(Registry&);

}  // namespace emulator
