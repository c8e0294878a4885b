// Which registers may be read before anything wrote them: a static must-define analysis.
//
// Only the registers it cannot clear are tracked while the kernel runs, so that a clean kernel
// pays nothing. A predicated write is not a definition here; at run time its lanes are counted.

#include <algorithm>

#include "program.h"

namespace emulator {
namespace {

using Words = std::vector<bool>;

bool is_register(const Operand& o) {
  return o.bank == 0 && (o.kind == OperandKind::kReg32 || o.kind == OperandKind::kReg64);
}

bool ends_path(const Insn& insn) {
  return !insn.predicated &&
         (insn.opcode == "exit" || insn.opcode == "ret" || insn.opcode == "bra" ||
          insn.opcode == "brx_idx" || insn.opcode == "trap");
}

std::vector<u32> successors(const Program& program, u32 pc) {
  const Insn& insn = program.insns[pc];
  std::vector<u32> next;
  if (insn.target >= 0) next.push_back(static_cast<u32>(insn.target));
  if (insn.opcode == "brx_idx") {
    for (s64 target : insn.args) next.push_back(static_cast<u32>(target));
  }
  if (!ends_path(insn) && pc + 1 < program.insns.size()) next.push_back(pc + 1);
  return next;
}

}  // namespace

void find_undefined_registers(Program& program) {
  const u32 num_insns = static_cast<u32>(program.insns.size());
  // Basic blocks keep the analysis quick on kernels of many thousand instructions.
  std::vector<bool> leader(num_insns + 1, false);
  leader[0] = true;
  for (u32 pc = 0; pc < num_insns; ++pc) {
    const std::vector<u32> next = successors(program, pc);
    if (next.size() == 1 && next[0] == pc + 1) continue;
    leader[pc + 1] = true;
    for (u32 target : next) leader[target] = true;
  }
  std::vector<u32> block_of(num_insns), begin;
  for (u32 pc = 0; pc < num_insns; ++pc) {
    if (leader[pc]) begin.push_back(pc);
    block_of[pc] = static_cast<u32>(begin.size()) - 1;
  }
  begin.push_back(num_insns);
  const std::size_t num_blocks = begin.size() - 1;
  std::vector<Words> entry(num_blocks);
  std::vector<u32> work;
  Words start(program.num_words, false);
  for (const SpecialRegister& special : program.specials) start[special.offset / kLanes] = true;
  entry[0] = start;
  work.push_back(0);
  const auto define = [](Words& words, const Insn& insn) {
    if (insn.predicated) return;
    for (std::size_t i = 0; i < insn.num_dests && i < insn.ops.size(); ++i) {
      if (is_register(insn.ops[i])) words[insn.ops[i].offset / kLanes] = true;
    }
  };
  while (!work.empty()) {
    const u32 block = work.back();
    work.pop_back();
    Words words = entry[block];
    for (u32 pc = begin[block]; pc < begin[block + 1]; ++pc) define(words, program.insns[pc]);
    for (u32 target : successors(program, begin[block + 1] - 1)) {
      Words& at = entry[block_of[target]];
      if (at.empty()) {
        at = words;
        work.push_back(block_of[target]);
        continue;
      }
      bool changed = false;
      for (std::size_t i = 0; i < words.size(); ++i) {
        if (at[i] && !words[i]) {
          at[i] = false;
          changed = true;
        }
      }
      if (changed) work.push_back(block_of[target]);
    }
  }
  Words suspect(program.num_words, false);
  for (std::size_t block = 0; block < num_blocks; ++block) {
    if (entry[block].empty()) continue;
    Words words = entry[block];
    for (u32 pc = begin[block]; pc < begin[block + 1]; ++pc) {
      Insn& insn = program.insns[pc];
      for (std::size_t i = insn.num_dests; i < insn.ops.size(); ++i) {
        const Operand& o = insn.ops[i];
        if (!is_register(o) || words[o.offset / kLanes]) continue;
        suspect[o.offset / kLanes] = true;
        program.tracks_definedness = true;
      }
      define(words, insn);
    }
  }
  if (!program.tracks_definedness) return;
  // A copy can move the mark into any register, so copies are followed through.
  for (bool changed = true; changed;) {
    changed = false;
    for (const Insn& insn : program.insns) {
      if (insn.opcode != "mov" && insn.opcode != "pack" && insn.opcode != "unpack") continue;
      bool marked = false;
      for (std::size_t i = insn.num_dests; i < insn.ops.size(); ++i) {
        marked |= is_register(insn.ops[i]) && suspect[insn.ops[i].offset / kLanes];
      }
      for (std::size_t i = 0; marked && i < insn.num_dests; ++i) {
        if (!is_register(insn.ops[i]) || suspect[insn.ops[i].offset / kLanes]) continue;
        suspect[insn.ops[i].offset / kLanes] = true;
        changed = true;
      }
    }
  }
  program.suspects = suspect;
  for (Insn& insn : program.insns) {
    for (std::size_t i = 0; i < insn.ops.size(); ++i) {
      if (!is_register(insn.ops[i]) || !suspect[insn.ops[i].offset / kLanes]) continue;
      (i < insn.num_dests ? insn.tracks_definedness : insn.checks_definedness) = true;
    }
  }
}

}  // namespace emulator
