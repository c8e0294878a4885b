// The CPU kernels for baseline. Standard headers come before the target pragma, so that no inline
// function of theirs is compiled for an ISA that the machine may lack.
#include <cstdint>

#include "cpu/kernels/table.h"
#define SEEKERNEL_ISA baseline
#define SEEKERNEL_VECTOR_BYTES 16
#include "cpu/kernels/all.inl"
