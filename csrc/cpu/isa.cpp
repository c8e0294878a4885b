#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace seekernel::cpu {
namespace {

bool supported(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::kBaseline:
      return true;
  }
  return false;
#else
  return isa == Isa::kBaseline;
#endif
}

Isa choose() {
  const char* wanted = std::getenv("SEEKERNEL_CPU_ISA");
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2, Isa::kBaseline}) {
    if (wanted != nullptr && *wanted != '\0') {
      if (std::strcmp(wanted, isa_name(isa)) != 0) continue;
      if (!supported(isa)) {
        throw std::runtime_error(std::string("SEEKERNEL_CPU_ISA: this machine has no ") + wanted);
      }
      return isa;
    }
    if (supported(isa)) return isa;
  }
  throw std::runtime_error(
      std::string("SEEKERNEL_CPU_ISA: expected baseline, avx2 or avx512, got '") + wanted + "'");
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return "baseline";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

const KernelTable& kernels() {
#if defined(__x86_64__)
  switch (isa()) {
    case Isa::kAvx512:
      return avx512::kTable;
    case Isa::kAvx2:
      return avx2::kTable;
    case Isa::kBaseline:
      break;
  }
#endif
  return baseline::kTable;
}

}  // namespace seekernel::cpu
