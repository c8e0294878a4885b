// Global memory and the address windows of generic addressing.
#pragma once

#include <map>

#include "types.h"

namespace emulator {

// Windows lie 2^40 apart, so the top bits of a generic address name its space.
inline constexpr u64 kWindowBits = 40;
inline constexpr u64 kGlobalBase = 0x7full << kWindowBits;
inline constexpr u64 kSharedBase = 0x7eull << kWindowBits;
inline constexpr u64 kLocalBase = 0x7dull << kWindowBits;
inline constexpr u64 kParamBase = 0x7cull << kWindowBits;

// A shared address carries (CTA rank + 1) in its top byte; 0 there means the executing CTA.
inline constexpr u32 kRankShift = 24;
inline constexpr u32 kSharedOffsetMask = (1u << kRankShift) - 1;
// Hopper reserves the first KiB of shared memory; keeping it out also catches null pointers.
inline constexpr u32 kSharedStart = 1024;

enum class Space : u8 { kGeneric, kGlobal, kShared, kParam, kLocal, kConst };

enum ByteState : u8 { kUnallocated = 0, kUninitialised = 1, kInitialised = 2 };

struct Cell;

class GlobalMemory {
 public:
  // Reserved, not touched: pages are only taken where a test writes.
  static constexpr u64 kArenaBytes = 1ull << 30;
  // Between allocations, so that a small overrun never lands in a neighbour.
  static constexpr u64 kGuardBytes = 512;

  GlobalMemory();
  ~GlobalMemory();
  GlobalMemory(const GlobalMemory&) = delete;
  GlobalMemory& operator=(const GlobalMemory&) = delete;

  u64 allocate(u64 num_bytes);
  void release(u64 address);
  void write(u64 address, const void* from, u64 num_bytes);
  void read(u64 address, void* to, u64 num_bytes) const;
  u64 count_uninitialised(u64 address, u64 num_bytes) const;

  bool contains(u64 address, u64 num_bytes) const {
    return address >= kGlobalBase && address - kGlobalBase <= kArenaBytes - num_bytes;
  }
  u8* data(u64 address) { return data_ + (address - kGlobalBase); }
  u8* state(u64 address) { return state_ + (address - kGlobalBase); }
  Cell* cells() { return cells_; }
  // "12 bytes past the end of a 4096-byte allocation at 0x..."
  const char* describe(u64 address);

 private:
  void check_range(u64 address, u64 num_bytes) const;

  u8* data_;
  u8* state_;
  Cell* cells_;
  u64 top_ = 4096;
  std::map<u64, u64> allocations_;
  char description_[160];
};

}  // namespace emulator
