#include "shadow.h"

#include "machine.h"

namespace emulator {
namespace {

std::string who_did(const Machine& machine, const Access& a, bool write) {
  return format("%s%s at %s", a.async ? "asynchronous " : "", write ? "write" : "read",
                machine.program->location(a.pc).c_str());
}

// Strong operations on one location do not race, unless they go through different proxies.
bool both_strong(const Access& access, const Actor& actor) {
  return access.strong && actor.strong && access.async == actor.async;
}

bool covers(const Access& older, const Access& newer) {
  return older.value == 0 || (older.grid == newer.grid && older.who == newer.who &&
                              older.value <= newer.value && older.strong == newer.strong);
}

}  // namespace

void Shadow::touch(Machine& machine, u64 offset, u32 num_bytes, bool write, const Actor& actor,
                   const char* name) {
  const u64 end = offset + num_bytes;
  u64 at = offset;
  while (at < end) {
    const u64 base = at / kBytesPerCell * kBytesPerCell;
    const u32 first = static_cast<u32>(at - base);
    const u32 last = static_cast<u32>(std::min<u64>(end - base, kBytesPerCell));
    Cell& cell = cells_[base / kBytesPerCell];
    if (first == 0 && last == kBytesPerCell && cell.split == 0) {
      touch_cell(machine, cell, base, write, actor, name);
    } else {
      touch_bytes(machine, cell, base, first, last, write, actor, name);
    }
    at = base + last;
  }
}

void Shadow::touch_bytes(Machine& machine, Cell& cell, u64 offset, u32 first, u32 last, bool write,
                         const Actor& actor, const char* name) {
  if (cell.split == 0) {
    const Cell whole = cell;
    std::array<Cell, kBytesPerCell> parts;
    for (u32 i = 0; i < kBytesPerCell; ++i) {
      parts[i] = whole;
      // The list of readers is copied: each byte goes its own way from here.
      if (whole.more_reads != 0) {
        parts[i].more_reads = static_cast<u32>(readers_.size());
        readers_.push_back(std::vector<Access>(readers_[whole.more_reads]));
      }
    }
    cell.split = static_cast<u32>(splits_.size());
    splits_.push_back(parts);
  }
  for (u32 i = first; i < last; ++i) {
    touch_cell(machine, splits_[cell.split][i], offset + i, write, actor, name);
  }
  if (write && first == 0 && last == kBytesPerCell) {
    // One writer owns all four bytes again.
    const Cell merged = splits_[cell.split][0];
    cell = merged;
    cell.split = 0;
  }
}

void Shadow::touch_cell(Machine& machine, Cell& cell, u64 offset, bool write, const Actor& actor,
                        const char* name) {
  const char* verb = write ? "write" : "read";
  const Access& last = cell.write;
  if (last.value != 0 && !both_strong(last, actor)) {
    if (!machine.ordered(last, actor) && !observed(machine, cell, actor)) {
      const char* category = last.grid != machine.grid_number() ? "PDL" : "RACE";
      machine.report(
          actor.warp, category, last.pc,
          format("%s%s of %s 0x%llx is not ordered after the %s",
                 actor.async ? "asynchronous " : "", verb, name,
                 static_cast<unsigned long long>(offset), who_did(machine, last, true).c_str()));
    } else if (actor.async && !last.async && last.grid == machine.grid_number() &&
               last.value > actor.know->async.get(last.who)) {
      machine.report(actor.warp, "PROXY", last.pc,
                     format("asynchronous %s of %s 0x%llx: no fence.proxy.async after the generic "
                            "%s",
                            verb, name, static_cast<unsigned long long>(offset),
                            who_did(machine, last, true).c_str()));
    }
  }
  Access mine;
  mine.value = actor.value;
  mine.who = actor.who;
  mine.pc = actor.pc;
  mine.lane = actor.lane;
  mine.grid = machine.grid_number();
  mine.strong = actor.strong;
  mine.async = actor.async;
  mine.read = !write;
  if (!write) {
    record_read(machine, cell, mine, actor);
    return;
  }
  const auto check_read = [&](const Access& read) {
    if (read.value == 0 || both_strong(read, actor) || machine.ordered(read, actor)) {
      return false;
    }
    const char* category = read.grid != machine.grid_number() ? "PDL" : "RACE";
    machine.report(
        actor.warp, category, read.pc,
        format("%swrite of %s 0x%llx may overtake the %s", actor.async ? "asynchronous " : "", name,
               static_cast<unsigned long long>(offset), who_did(machine, read, false).c_str()));
    return true;
  };
  if (!check_read(cell.read) && cell.more_reads != 0) {
    for (const Access& read : readers_[cell.more_reads]) {
      if (check_read(read)) break;
    }
  }
  cell.write = mine;
  cell.read = Access{};
  if (cell.more_reads != 0) readers_[cell.more_reads].clear();
}

bool Shadow::observed(const Machine& machine, const Cell& cell, const Actor& actor) const {
  // Coherence: whoever has read a strong write's value by a strong read comes after that write at
  // this location, even where nothing else of the writer is known. Reads are forgotten at every
  // write, so those on record have read the last one.
  if (!cell.write.strong) return false;
  const auto counts = [&](const Access& read) {
    return read.value != 0 && read.strong && machine.ordered(read, actor);
  };
  if (counts(cell.read)) return true;
  if (cell.more_reads == 0) return false;
  for (const Access& read : readers_[cell.more_reads]) {
    if (counts(read)) return true;
  }
  return false;
}

void Shadow::record_read(Machine& machine, Cell& cell, const Access& mine, const Actor& actor) {
  Access& kept = cell.read;
  if (covers(kept, mine)) {
    // Two lanes of a warp that read the same bytes: neither stands for the other.
    const bool other_lane = kept.value == mine.value && kept.lane != mine.lane;
    kept = mine;
    if (other_lane) kept.lane = kAnyLane;
    return;
  }
  // A read that already happened before this one can never race where this one does not.
  if (cell.more_reads == 0) {
    if (machine.ordered(kept, actor) && kept.async == mine.async) {
      kept = mine;
      return;
    }
    cell.more_reads = static_cast<u32>(readers_.size());
    readers_.emplace_back();
  }
  std::vector<Access>& list = readers_[cell.more_reads];
  for (Access& read : list) {
    if (covers(read, mine)) {
      const bool other_lane = read.value == mine.value && read.lane != mine.lane;
      read = mine;
      if (other_lane) read.lane = kAnyLane;
      return;
    }
  }
  list.push_back(mine);
}

void Shadow::clear(u64 offset, u64 num_bytes) {
  const u64 first = offset / kBytesPerCell;
  const u64 last = (offset + num_bytes + kBytesPerCell - 1) / kBytesPerCell;
  for (u64 i = first; i < last; ++i) cells_[i] = Cell{};
}

}  // namespace emulator
