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

void reduce_elements(AtomicOp op, Type type, u8* to, const u8* from, u32 count);

// The common part of copies that complete on an mbarrier. ops: destination, source or map, mbarrier,
// multicast mask or none. `touch_source` judges the source once for the first destination's agent;
// `prepare` checks one destination and returns what moves its bytes.
void issue_load(Machine& machine, Warp& warp, const Insn& insn, int lane, u32 num_bytes,
                const std::function<void(const Actor&)>& touch_source,
                const std::function<std::function<void(Machine&)>(const Machine::SharedTarget&)>&
                    prepare);

}  // namespace emulator
