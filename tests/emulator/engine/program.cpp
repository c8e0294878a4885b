#include "program.h"

#include <algorithm>

#include "report.h"

namespace emulator {

std::string Program::location(u32 pc) const {
  if (pc >= insns.size()) return "the end of the kernel";
  const Insn& insn = insns[pc];
  std::string text = insn.text.size() > 100 ? insn.text.substr(0, 100) + "..." : insn.text;
  const std::string line = "PTX line " + std::to_string(insn.ptx_line) + ": " + text;
  return insn.source.empty() ? line : insn.source + " (" + line + ")";
}

void Program::finish() {
  std::vector<bool> wgmma_words(num_words, false);
  for (Insn& insn : insns) {
    insn.pc = static_cast<u32>(&insn - insns.data());
    if (insn.target >= static_cast<s32>(insns.size())) {
      throw LoadError("line " + std::to_string(insn.ptx_line) + ": branch past the end");
    }
    for (const Operand& o : insn.ops) {
      const bool wide = o.kind == OperandKind::kReg64;
      if ((wide || o.kind == OperandKind::kReg32) && o.bank == 0 &&
          o.offset / kLanes + (wide ? 1 : 0) >= num_words) {
        throw LoadError("line " + std::to_string(insn.ptx_line) + ": register out of range");
      }
    }
    Registry::instance().bind(insn);
    if (insn.opcode != "wgmma") continue;
    const std::size_t num = insn.num_dests + (insn.args[3] != 0 ? 4 : 0);
    for (std::size_t i = 0; i < num; ++i) {
      if (insn.ops[i].bank == 0) wgmma_words[insn.ops[i].offset / kLanes] = true;
    }
  }
  for (Insn& insn : insns) {
    if (insn.opcode == "wgmma") continue;
    for (const Operand& o : insn.ops) {
      const bool is_register =
          o.bank == 0 && (o.kind == OperandKind::kReg32 || o.kind == OperandKind::kReg64);
      if (is_register && wgmma_words[o.offset / kLanes]) insn.touches_wgmma_registers = true;
    }
  }
  find_undefined_registers(*this);
}

Registry::Registry() {
  register_integer(*this);
  register_float(*this);
  register_bits(*this);
  register_convert(*this);
  register_moves(*this);
  register_control(*this);
  register_access(*this);
  register_atomics(*this);
  register_warp_ops(*this);
  register_barriers(*this);
  register_fences(*this);
  register_mbarrier(*this);
  register_cp_async(*this);
  register_tma(*this);
  register_bulk(*this);
  register_matrix(*this);
  register_mma(*this);
  register_wgmma(*this);
}

const Registry& Registry::instance() {
  static const Registry registry;
  return registry;
}

void Registry::add(const std::string& opcode, Resolver resolver, Convergence convergence) {
  entries_[opcode] = {resolver, convergence};
}

void Registry::bind(Insn& insn) const {
  const auto found = entries_.find(insn.opcode);
  insn.handler = found == entries_.end() ? nullptr : found->second.resolver(insn);
  if (insn.handler == nullptr) {
    throw LoadError("line " + std::to_string(insn.ptx_line) + ": unsupported form: " + insn.text);
  }
  insn.convergence = found->second.convergence;
}

std::vector<std::string> Registry::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries_) names.push_back(name);
  return names;
}

}  // namespace emulator
