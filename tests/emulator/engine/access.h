// What ordinary and atomic accesses share.
#pragma once

#include "machine.h"

namespace emulator {

enum class Ordering : u8 { kWeak, kRelaxed, kAcquire, kRelease, kAcquireRelease };

enum class AtomicOp : u8 { kAdd, kMin, kMax, kInc, kDec, kAnd, kOr, kXor, kExch, kCas };

// The new value of one element; c is the replacement of a compare-and-swap.
u64 apply_atomic(AtomicOp op, Type type, u64 old, u64 b, u64 c);

// Passes knowledge through a location: release operations publish there, acquire operations learn.
// Relaxed ones pass on what the last fence released, and hand what they read to the next fence.
void synchronise_location(Machine& machine, Warp& warp, u64 key, bool is_shared, bool reads,
                          bool writes, bool acquire, bool release);
u64 shared_key(const Machine::SharedTarget& where);

}  // namespace emulator
