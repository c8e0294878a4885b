// The Python module: programs, machines, launches.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "machine.h"

namespace py = pybind11;

namespace emulator {
namespace {

using OperandTuple = std::tuple<int, int, u32, s64>;
using InsnTuple = std::tuple<std::string, int, int, s64, bool, s32, u32, u32, std::string,
                             std::string, std::vector<OperandTuple>, std::vector<s64>>;

Type checked_type(int index) {
  if (index < 0 || index >= kNumTypes) throw LoadError("type index out of range");
  return static_cast<Type>(index);
}

Insn make_insn(const InsnTuple& t) {
  Insn insn;
  insn.opcode = std::get<0>(t);
  insn.type = checked_type(std::get<1>(t));
  insn.type2 = checked_type(std::get<2>(t));
  insn.predicated = std::get<3>(t) >= 0;
  insn.pred = static_cast<u32>(std::max<s64>(0, std::get<3>(t)));
  insn.pred_negated = std::get<4>(t);
  insn.target = std::get<5>(t);
  insn.num_dests = std::get<6>(t);
  insn.ptx_line = std::get<7>(t);
  insn.source = std::get<8>(t);
  insn.text = std::get<9>(t);
  for (const auto& [kind, bank, offset, imm] : std::get<10>(t)) {
    insn.ops.push_back({static_cast<OperandKind>(kind), static_cast<u8>(bank), offset, imm});
  }
  insn.args = std::get<11>(t);
  return insn;
}

std::shared_ptr<Program> make_program(
    const std::string& name, const std::vector<InsnTuple>& insns,
    const std::vector<std::pair<u64, bool>>& constants,
    const std::vector<std::tuple<std::string, u32, bool>>& specials, const py::dict& sizes) {
  auto program = std::make_shared<Program>();
  program->name = name;
  for (const InsnTuple& t : insns) program->insns.push_back(make_insn(t));
  for (const auto& [value, wide] : constants) {
    for (int l = 0; l < kLanes; ++l) {
      program->constants.push_back(static_cast<u32>(value));
      if (wide) program->constants.push_back(static_cast<u32>(value >> 32));
    }
  }
  for (const auto& [special, offset, wide] : specials) {
    program->specials.push_back({special, offset, wide});
  }
  program->num_words = sizes["num_words"].cast<u32>();
  program->num_preds = sizes["num_preds"].cast<u32>();
  program->static_shared_bytes = sizes["static_shared_bytes"].cast<u32>();
  program->dynamic_shared_align = sizes["dynamic_shared_align"].cast<u32>();
  program->local_bytes = sizes["local_bytes"].cast<u32>();
  program->param_bytes = sizes["param_bytes"].cast<u32>();
  program->registers_per_thread = sizes["registers_per_thread"].cast<u32>();
  program->finish();
  return program;
}

Options make_options(const py::dict& d) {
  Options o;
  o.order = d["random_order"].cast<bool>() ? Order::kRandom : Order::kRoundRobin;
  o.asynchrony = static_cast<Asynchrony>(d["asynchrony"].cast<int>());
  o.seed = d["seed"].cast<u64>();
  o.burst = std::max(1u, d["burst"].cast<u32>());
  o.checks = d["checks"].cast<bool>();
  o.hopper_accumulate = d["hopper_accumulate"].cast<bool>();
  o.max_instructions = d["max_instructions"].cast<u64>();
  o.max_idle_instructions = std::min<u64>(o.max_idle_instructions, o.max_instructions);
  o.resident_ctas = std::max(1u, d["resident_ctas"].cast<u32>());
  return o;
}

py::tuple launch(Machine& machine, const Program& program, const std::array<u32, 3>& grid,
                 const std::array<u32, 3>& block, const std::array<u32, 3>& cluster,
                 u32 shared_bytes, bool programmatic, const py::bytes& params,
                 const py::dict& options) {
  LaunchShape shape;
  shape.grid = grid;
  shape.block = block;
  shape.cluster = cluster;
  shape.dynamic_shared_bytes = shared_bytes;
  shape.programmatic = programmatic;
  const std::string raw = params;
  const std::vector<u8> memory(raw.begin(), raw.end());
  const Options chosen = make_options(options);
  bool finished = false;
  {
    py::gil_scoped_release release;
    finished = machine.launch(program, shape, memory, chosen);
  }
  py::dict counters;
#define X(name) counters[#name] = machine.counters.name;
  EMULATOR_COUNTERS(X)
#undef X
  return py::make_tuple(finished, machine.reports.lines(), counters);
}

void host_write(Machine& machine, u64 address, const py::buffer& data) {
  const py::buffer_info info = data.request();
  const u64 num_bytes = static_cast<u64>(info.size * info.itemsize);
  machine.synchronise();
  machine.memory.write(address, info.ptr, num_bytes);
  machine.global_shadow.clear(address - kGlobalBase, num_bytes);
}

py::bytes host_read(Machine& machine, u64 address, u64 num_bytes) {
  machine.synchronise();
  std::string out(num_bytes, '\0');
  machine.memory.read(address, out.data(), num_bytes);
  return py::bytes(out);
}

std::vector<std::pair<std::string, u32>> type_table() {
  std::vector<std::pair<std::string, u32>> table;
  for (int i = 0; i < kNumTypes; ++i) table.emplace_back(kTypeNames[i], kTypeBytes[i]);
  return table;
}

}  // namespace
}  // namespace emulator

PYBIND11_MODULE(EMULATOR_MODULE, m) {
  using namespace emulator;
  py::register_exception<LoadError>(m, "LoadError", PyExc_ValueError);
  py::class_<Program, std::shared_ptr<Program>>(m, "Program")
      .def(py::init(&make_program))
      .def_readonly("name", &Program::name)
      .def_readonly("tracks_definedness", &Program::tracks_definedness);
  py::class_<Machine>(m, "Machine")
      .def(py::init<>())
      .def("allocate", [](Machine& machine, u64 n) { return machine.memory.allocate(n); })
      .def("release", [](Machine& machine, u64 a) { machine.memory.release(a); })
      .def("write", &host_write)
      .def("read", &host_read)
      .def("count_uninitialised",
           [](Machine& machine, u64 a, u64 n) { return machine.memory.count_uninitialised(a, n); })
      .def("launch", &launch);
  m.def("type_table", &type_table);
  m.def("opcodes", [] { return Registry::instance().names(); });
  m.attr("SHARED_START") = kSharedStart;
}
