// Which instruction set the CPU kernels use: chosen once, at first use, from what the machine has.
#pragma once

#include "cpu/kernels/table.h"

namespace seekernel::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The best set this machine and build have, or the one SEEKERNEL_CPU_ISA names
// (baseline, avx2, avx512); a name the machine cannot run throws.
Isa isa();
const char* isa_name(Isa isa);

// The kernels compiled for isa().
const KernelTable& kernels();

}  // namespace seekernel::cpu
