// What tile copies and one-dimensional bulk copies share.
#pragma once

#include <functional>

#include "access.h"

namespace emulator {

// A store reads shared memory and writes global memory as two agents: wait_group.read proves the
// first, wait_group the second.
struct BulkActors {
  Actor read, write;
};
BulkActors bulk_actors(Machine& machine, Warp& warp, bool strong);

// Whether a lower lane of `mask` executes the instruction with the same operands.
bool repeats_earlier_lane(Warp& warp, const Insn& insn, u32 mask, int lane);

void reduce_elements(AtomicOp op, Type type, u8* to, const u8* from, u32 count);

// The common part of copies that complete on an mbarrier.
struct LoadParts {
  u32 num_bytes;  // what the mbarrier counts
  u32 footprint;  // how far the target reaches
  // Judges the source, once, as an access of the first destination's agent.
  std::function<void(const Actor&)> touch_source;
  std::function<void(const Machine::SharedTarget&, const Actor&)> touch_target;
  // Checks one destination and returns what moves its bytes.
  std::function<std::function<void(Machine&)>(const Machine::SharedTarget&)> prepare;
};
// ops: destination, source or map, mbarrier, multicast mask or none.
void issue_load(Machine& machine, Warp& warp, const Insn& insn, int lane, const LoadParts& parts);

}  // namespace emulator
