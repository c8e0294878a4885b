#include "memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <new>
#include <stdexcept>

#include "shadow.h"

namespace emulator {
namespace {

// All bits set is a NaN in every float format and a wild index in every integer one.
constexpr int kPoison = 0xff;

void* reserve(u64 num_bytes) {
  void* p = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return p;
}

constexpr u64 kCellBytes = GlobalMemory::kArenaBytes / kBytesPerCell * sizeof(Cell);

}  // namespace

GlobalMemory::GlobalMemory()
    : data_(static_cast<u8*>(reserve(kArenaBytes))),
      state_(static_cast<u8*>(reserve(kArenaBytes))),
      cells_(static_cast<Cell*>(reserve(kCellBytes))) {}

GlobalMemory::~GlobalMemory() {
  munmap(data_, kArenaBytes);
  munmap(state_, kArenaBytes);
  munmap(cells_, kCellBytes);
}

u64 GlobalMemory::allocate(u64 num_bytes) {
  const u64 padded = (num_bytes + 255) / 256 * 256 + kGuardBytes;
  if (num_bytes > kArenaBytes || top_ + padded > kArenaBytes) {
    throw std::runtime_error("emulator memory: expected at most 1 GiB in all, got " +
                             std::to_string(top_ + num_bytes) + " bytes");
  }
  const u64 address = kGlobalBase + top_;
  top_ += padded;
  allocations_[address] = num_bytes;
  std::memset(data(address), kPoison, num_bytes);
  std::memset(state(address), kUninitialised, num_bytes);
  return address;
}

void GlobalMemory::release(u64 address) {
  const auto found = allocations_.find(address);
  if (found == allocations_.end()) throw std::runtime_error("emulator memory: freed twice");
  // Addresses are never handed out again, so any later use is seen as out of bounds.
  std::memset(state(address), kUnallocated, found->second);
  const u64 page = 4096;
  const u64 begin = (address - kGlobalBase + page - 1) / page * page;
  const u64 end = (address - kGlobalBase + found->second) / page * page;
  if (end > begin) madvise(data_ + begin, end - begin, MADV_DONTNEED);
  allocations_.erase(found);
}

void GlobalMemory::check_range(u64 address, u64 num_bytes) const {
  auto next = allocations_.upper_bound(address);
  if (next == allocations_.begin()) throw std::runtime_error("emulator memory: no such buffer");
  --next;
  if (address + num_bytes > next->first + next->second) {
    throw std::runtime_error("emulator memory: copy past the end of a buffer");
  }
}

void GlobalMemory::write(u64 address, const void* from, u64 num_bytes) {
  if (num_bytes == 0) return;
  check_range(address, num_bytes);
  std::memcpy(data(address), from, num_bytes);
  std::memset(state(address), kInitialised, num_bytes);
}

void GlobalMemory::read(u64 address, void* to, u64 num_bytes) const {
  if (num_bytes == 0) return;
  check_range(address, num_bytes);
  std::memcpy(to, data_ + (address - kGlobalBase), num_bytes);
}

u64 GlobalMemory::count_uninitialised(u64 address, u64 num_bytes) const {
  u64 count = 0;
  for (u64 i = 0; i < num_bytes; ++i) {
    count += state_[address - kGlobalBase + i] != kInitialised;
  }
  return count;
}

const char* GlobalMemory::describe(u64 address) {
  auto next = allocations_.upper_bound(address);
  if (next != allocations_.begin()) {
    const auto before = std::prev(next);
    const u64 past = address - before->first;
    if (past < before->second) {
      std::snprintf(description_, sizeof description_, "byte %llu of a %llu-byte allocation",
                    static_cast<unsigned long long>(past),
                    static_cast<unsigned long long>(before->second));
    } else {
      std::snprintf(description_, sizeof description_,
                    "%llu bytes past the end of a %llu-byte allocation",
                    static_cast<unsigned long long>(past - before->second),
                    static_cast<unsigned long long>(before->second));
    }
    return description_;
  }
  return "in no allocation";
}

}  // namespace emulator
