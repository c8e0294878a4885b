// seekernel._jit: the launch path, without torch. Python is called back only to compile.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "driver/tensor_map.h"
#include "heuristics/aot.h"
#include "heuristics/gemm.h"
#include "jit/null_driver.h"
#include "jit/registry.h"
#include "launch/fp8_gemm.h"

namespace py = pybind11;
namespace seekernel::jit {
namespace {

using heuristics::choose;
using heuristics::GemmConfig;
using heuristics::GemmShape;
using heuristics::Gpu;
using heuristics::TunedRow;

std::vector<TunedRow>& tuned_rows() {
  static std::vector<TunedRow> rows;
  return rows;
}

GemmConfig tuned_choice(const GemmShape& shape, const Gpu& gpu) {
  return choose(shape, gpu, false, tuned_rows());
}

// The Python resolver: (family, parameters) -> (cubin, symbol).
Resolver python_resolver(py::object callable) {
  if (callable.is_none()) return {};
  // The registry outlives the interpreter: the reference is given up for good.
  PyObject* kept = callable.release().ptr();
  return [kept](const KernelKey& key) {
    py::tuple parameters(key.num_parameters);
    for (int i = 0; i < key.num_parameters; ++i) parameters[i] = key.parameters[i];
    const auto answer = py::reinterpret_borrow<py::object>(kept)(key.family, parameters);
    const auto [cubin, symbol] = answer.cast<std::pair<py::bytes, std::string>>();
    return Cubin{cubin, symbol};
  };
}

py::dict describe_last_launch() {
  const LastLaunch& last = last_launch();
  const LaunchConfig& config = last.config;
  py::dict result;
  result["grid"] = py::make_tuple(config.grid[0], config.grid[1], config.grid[2]);
  result["block"] = py::make_tuple(config.block[0], config.block[1], config.block[2]);
  result["shared_bytes"] = config.shared_bytes;
  result["stream"] = reinterpret_cast<uintptr_t>(config.stream);
  result["cluster"] = py::none();
  result["pdl"] = false;
  for (unsigned i = 0; i < config.num_attributes; ++i) {
    const LaunchAttribute& attribute = last.attributes[i];
    if (attribute.id == kClusterDimension) {
      result["cluster"] = py::make_tuple(attribute.value.cluster.x, attribute.value.cluster.y,
                                         attribute.value.cluster.z);
    } else if (attribute.id == kProgrammaticStreamSerialization) {
      result["pdl"] = attribute.value.programmatic_serialization != 0;
    }
  }
  result["num_launches"] = last.num_launches;
  result["num_encodes"] = last.num_encodes;
  result["num_loads"] = last.num_loads;
  return result;
}

// Launches a loaded kernel with plain parameters: one `bytes` each, as the kernel's memory holds
// them.
void launch_bytes(const LoadedKernel& kernel, std::array<unsigned, 3> grid, unsigned shared_bytes,
                  const std::vector<py::bytes>& arguments, uintptr_t stream) {
  // Tensor maps want 64-byte alignment.
  struct alignas(64) Slot {
    char bytes[256];
  };
  std::vector<Slot> slots(arguments.size());
  std::vector<void*> parameters(arguments.size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view bytes = arguments[i];
    if (bytes.size() > sizeof(Slot)) {
      throw std::invalid_argument("launch: argument " + std::to_string(i) +
                                  ": expected at most 256 bytes, got " +
                                  std::to_string(bytes.size()));
    }
    std::memcpy(slots[i].bytes, bytes.data(), bytes.size());
    parameters[i] = slots[i].bytes;
  }
  kernel.kernel().launch(grid, shared_bytes, stream, parameters.data());
}

void bind_heuristics(py::module_& m) {
  using heuristics::GemmMulticast, heuristics::GemmOutput, heuristics::TileKind;
  py::class_<GemmConfig>(m, "GemmConfig", "Tile configuration of an FP8 GEMM.")
      .def(py::init([](bool swap_ab, int block_m, int block_n, int num_stages, int multicast,
                       int kind, int output, bool gather, bool ping_pong) {
             return GemmConfig{swap_ab,
                               block_m,
                               block_n,
                               num_stages,
                               static_cast<GemmMulticast>(multicast),
                               static_cast<TileKind>(kind),
                               static_cast<GemmOutput>(output),
                               gather,
                               ping_pong};
           }),
           py::arg("swap_ab"), py::arg("block_m"), py::arg("block_n"), py::arg("num_stages"),
           py::arg("multicast") = 0, py::arg("kind") = 0, py::arg("output") = 0,
           py::arg("gather") = false, py::arg("ping_pong") = false)
      .def_readonly("swap_ab", &GemmConfig::swap_ab)
      .def_readonly("block_m", &GemmConfig::block_m)
      .def_readonly("block_n", &GemmConfig::block_n)
      .def_readonly("num_stages", &GemmConfig::num_stages)
      .def_property_readonly("multicast",
                             [](const GemmConfig& c) { return static_cast<int>(c.multicast); })
      .def_property_readonly("kind", [](const GemmConfig& c) { return static_cast<int>(c.kind); })
      .def_property_readonly("output",
                             [](const GemmConfig& c) { return static_cast<int>(c.output); })
      .def_readonly("gather", &GemmConfig::gather)
      .def_readonly("ping_pong", &GemmConfig::ping_pong)
      .def_property_readonly(
          "parameters",
          [](const GemmConfig& c) {
            const KernelKey key = sm90_fp8_gemm_nt_key(c);
            return py::tuple(py::cast(std::vector<int>(
                key.parameters.begin(), key.parameters.begin() + key.num_parameters)));
          })
      .def("__eq__", [](const GemmConfig& a, const GemmConfig& b) { return a == b; })
      .def("__hash__",
           [](const GemmConfig& c) {
             return py::hash(py::make_tuple(c.swap_ab, c.block_m, c.block_n, c.num_stages,
                                            static_cast<int>(c.multicast), static_cast<int>(c.kind),
                                            static_cast<int>(c.output), c.gather));
           })
      .def("__repr__", [](const GemmConfig& c) {
        return "GemmConfig(swap_ab=" + std::string(c.swap_ab ? "True" : "False") +
               ", block_m=" + std::to_string(c.block_m) + ", block_n=" + std::to_string(c.block_n) +
               ", num_stages=" + std::to_string(c.num_stages) +
               ", multicast=" + std::to_string(static_cast<int>(c.multicast)) +
               ", kind=" + std::to_string(static_cast<int>(c.kind)) +
               ", output=" + std::to_string(static_cast<int>(c.output)) +
               ", gather=" + std::string(c.gather ? "True" : "False") +
               ", ping_pong=" + std::string(c.ping_pong ? "True" : "False") + ")";
      });
  m.def(
      "gemm_resources",
      [](const GemmConfig& config, int64_t k) {
        const heuristics::GemmResources need = heuristics::resources(config, k);
        return py::make_tuple(need.num_threads, need.shared_bytes, need.consumer_registers,
                              need.consumer_register_limit);
      },
      py::arg("config"), py::arg("k"),
      "(threads, shared bytes, registers of a consumer thread, their limit).");
  m.def(
      "choose_gemm",
      [](int64_t rows, int64_t n, int64_t k, int num_groups, bool grouped, int num_sms,
         bool allow_swap, int kind, int output, bool gather) {
        return choose({rows, n, k, num_groups, grouped, static_cast<TileKind>(kind),
                       static_cast<GemmOutput>(output), gather},
                      {.num_sms = num_sms}, allow_swap, tuned_rows());
      },
      py::arg("m"), py::arg("n"), py::arg("k"), py::arg("num_groups") = 1,
      py::arg("grouped") = false, py::arg("num_sms") = 132, py::arg("allow_swap") = false,
      py::arg("kind") = 0, py::arg("output") = 0, py::arg("gather") = false,
      "The configuration for D[m, n] = A[m, k] @ B[n, k]^T; m per group where grouped.");
  m.def(
      "nearest_aot_gemm",
      [](const GemmConfig& wanted, int64_t k) { return heuristics::nearest_aot(wanted, k); },
      py::arg("wanted"), py::arg("k"),
      "The configuration compiled at build time that stands in for `wanted`.");
  m.def("aot_gemms", &heuristics::aot_configs, "The configurations compiled at build time.");
  m.def(
      "check_gemm_grid",
      [](const std::vector<int64_t>& ms, const std::vector<int64_t>& ns,
         const std::vector<int64_t>& ks, const std::vector<int>& sms, bool grouped, bool swap,
         int kind, int output, bool gather) {
        int64_t num_checked = 0;
        for (int num_sms : sms) {
          const Gpu gpu{.num_sms = num_sms};
          for (int64_t rows : ms) {
            for (int64_t n : ns) {
              for (int64_t k : ks) {
                const GemmShape shape{rows,
                                      n,
                                      k,
                                      grouped ? 8 : 1,
                                      grouped,
                                      static_cast<TileKind>(kind),
                                      static_cast<GemmOutput>(output),
                                      gather};
                const GemmConfig config = choose(shape, gpu, swap);
                const int grid = heuristics::num_ctas(config, shape, gpu);
                const int cluster = heuristics::cluster_size(config);
                const bool right_grid = grid >= cluster && grid % cluster == 0 &&
                                        grid <= std::max(num_sms, cluster) &&
                                        heuristics::raster(config, shape, gpu).band >= 1;
                const bool right_rule = config.swap_ab == (swap && prefers_swap(shape, gpu));
                if (!fits(config, shape, gpu) || !right_rule || !right_grid) {
                  throw std::runtime_error("no kernel for m=" + std::to_string(rows) +
                                           " n=" + std::to_string(n) + " k=" + std::to_string(k));
                }
                ++num_checked;
              }
            }
          }
        }
        return num_checked;
      },
      py::arg("ms"), py::arg("ns"), py::arg("ks"), py::arg("sms"), py::arg("grouped"),
      py::arg("swap"), py::arg("kind") = 0, py::arg("output") = 0, py::arg("gather") = false,
      "Choose for every combination and check that the choice fits; the number of shapes.");
  m.def(
      "set_tuned_gemms",
      [](const std::vector<py::dict>& rows) {
        std::vector<TunedRow> parsed;
        for (const py::dict& row : rows) {
          TunedRow& added = parsed.emplace_back();
          added.num_sms = row["num_sms"].cast<int>();
          added.n = row["n"].cast<int64_t>();
          added.k = row["k"].cast<int64_t>();
          added.m_min = row["m_min"].cast<int64_t>();
          added.m_max = row["m_max"].cast<int64_t>();
          added.grouped = row["grouped"].cast<bool>();
          added.config = row["config"].cast<GemmConfig>();
          if (!heuristics::fits(added.config, {added.m_max, added.n, added.k}, {added.num_sms})) {
            throw std::invalid_argument("tuned table: a configuration does not fit, row " +
                                        std::to_string(parsed.size() - 1));
          }
        }
        tuned_rows() = std::move(parsed);
        clear_choices();
      },
      py::arg("rows"), "Replace the tuned table; a row that does not fit is a ValueError.");
}

void bind_driver(py::module_& m) {
  m.def(
      "driver_status",
      [] {
        std::string reason;
        return driver_available(&reason) ? std::string() : reason;
      },
      "Empty where the CUDA driver can be used, else why not.");
  m.def(
      "driver_version",
      [] {
        int version = 0;
        check(driver().DriverGetVersion(&version), "cuDriverGetVersion");
        return version;
      },
      "CUDA version of the driver, as 13000 for 13.0.");
  m.def(
      "use_null_driver", [](bool on) { set_driver(on ? null_driver() : nullptr); }, py::arg("on"),
      "Launch nothing and note the last launch: for measuring host cost and for tests. Kernels and "
      "tensor maps made before belong to the other driver: call `clear` first.");
  m.def("last_launch", &describe_last_launch, "What the null driver was last asked to launch.");
}

}  // namespace

PYBIND11_MODULE(_jit, m) {
  m.doc() = "Loads and launches kernels through the CUDA driver, found at run time; no torch.";
  bind_heuristics(m);
  bind_driver(m);
  py::class_<LoadedKernel>(m, "Kernel", "A loaded kernel.")
      .def(py::init([](const py::bytes& cubin, const std::string& symbol, unsigned num_threads,
                       unsigned max_shared_bytes, std::array<unsigned, 3> cluster, bool pdl) {
             return std::make_unique<LoadedKernel>(
                 cubin, symbol, KernelTraits{num_threads, max_shared_bytes, cluster, pdl});
           }),
           py::arg("cubin"), py::arg("symbol"), py::arg("num_threads"),
           py::arg("max_shared_bytes") = 0, py::arg("cluster") = std::array<unsigned, 3>{1, 1, 1},
           py::arg("pdl") = false)
      .def_property_readonly("num_registers",
                             [](const LoadedKernel& k) { return k.kernel().num_registers(); })
      .def("launch", &launch_bytes, py::arg("grid"), py::arg("shared_bytes"), py::arg("arguments"),
           py::arg("stream") = 0,
           "Launch with one `bytes` per parameter; for tests, not for speed.");
  m.def(
      "set_resolver", [](py::object callable) { set_resolver(python_resolver(callable)); },
      py::arg("callable"), "(family, parameters) -> (cubin, symbol), asked once a kernel.");
  m.def("has_resolver", &has_resolver, "Whether a resolver is set.");
  m.def("num_kernels", &num_kernels, "Kernels loaded so far.");
  m.def("num_tensor_maps", [] { return tensor_maps().size(); }, "Tensor maps encoded and kept.");
  m.def(
      "clear",
      [] {
        clear_kernels();
        tensor_maps().clear();
      },
      "Unload all kernels and forget all tensor maps; nothing may be in flight.");
  m.def(
      "fp8_gemm_nt",
      [](uint64_t a, uint64_t sfa, uint64_t b, uint64_t sfb, uint64_t d, int64_t rows, int64_t n,
         int64_t k, int64_t a_stride, int64_t sfa_stride, int64_t b_stride, int64_t d_stride,
         int num_sms, uintptr_t stream, int output) {
        Fp8Gemm problem;
        problem.output = static_cast<heuristics::GemmOutput>(output);
        problem.m = rows, problem.n = n, problem.k = k;
        problem.a = a, problem.sfa = sfa, problem.b = b, problem.sfb = sfb, problem.d = d;
        problem.a_stride_m = a_stride, problem.sfa_stride_k = sfa_stride;
        problem.b_stride_n = b_stride, problem.d_stride_m = d_stride;
        fp8_gemm(problem, {.num_sms = num_sms}, &tuned_choice, &kernel, stream);
      },
      py::arg("a"), py::arg("sfa"), py::arg("b"), py::arg("sfb"), py::arg("d"), py::arg("m"),
      py::arg("n"), py::arg("k"), py::arg("a_stride"), py::arg("sfa_stride"), py::arg("b_stride"),
      py::arg("d_stride"), py::arg("num_sms"), py::arg("stream"), py::arg("output") = 0,
      "D[m, n] = A[m, k] @ B[n, k]^T with block scales, on device addresses; strides in elements.");
  m.def(
      "fp8_gemm",
      [](int kind, int output, int64_t rows, int64_t n, int64_t k, int64_t num_groups,
         int64_t expected_m, int64_t tokens, uint64_t a, uint64_t sfa, uint64_t b, uint64_t sfb,
         uint64_t d, uint64_t sfd, uint64_t groups, uint64_t num_tiles, uint64_t row_weight,
         uint64_t row_token, int64_t a_stride_m, int64_t a_stride_g, int64_t sfa_stride_k,
         int64_t sfa_stride_g, int64_t b_stride_n, int64_t b_stride_g, int64_t sfb_stride_g,
         int64_t d_stride_m, int64_t d_stride_g, int64_t sfd_stride_n, int offset_bytes,
         int num_sms, uintptr_t stream) {
        const Fp8Gemm problem{static_cast<heuristics::TileKind>(kind),
                              static_cast<heuristics::GemmOutput>(output),
                              rows,
                              n,
                              k,
                              num_groups,
                              expected_m,
                              tokens,
                              a,
                              sfa,
                              b,
                              sfb,
                              d,
                              sfd,
                              groups,
                              num_tiles,
                              row_weight,
                              row_token,
                              a_stride_m,
                              a_stride_g,
                              sfa_stride_k,
                              sfa_stride_g,
                              b_stride_n,
                              b_stride_g,
                              sfb_stride_g,
                              d_stride_m,
                              d_stride_g,
                              sfd_stride_n,
                              offset_bytes};
        fp8_gemm(problem, {.num_sms = num_sms}, &tuned_choice, &kernel, stream);
      },
      "Batched and grouped forms; the arguments are the members of launch::Fp8Gemm in order, then "
      "num_sms and stream.");
  m.def(
      "check_loads",
      [](const py::bytes& cubin, const std::string& symbol) { return check_loads(cubin, symbol); },
      py::arg("cubin"), py::arg("symbol"),
      "Load and unload a cubin where there is a driver and a GPU of sm_90; whether it was tried.");
  m.def("current_num_sms", &current_num_sms, "SMs of the current context's device.");
}

}  // namespace seekernel::jit
