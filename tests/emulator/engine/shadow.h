// Shadow cells: for every 4 bytes, who wrote them last and who has read them since.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "clock.h"
#include "types.h"

namespace emulator {

class Machine;
struct Warp;

inline constexpr u32 kBytesPerCell = 4;
// Collective instructions act for the whole warp: they never count as "the same lane".
inline constexpr u32 kAnyLane = 0xff;

// Launches are numbered modulo this; one device makes few enough of them between two buffers.
inline constexpr u32 kGridMask = 0xffff;

struct Access {
  u32 value = 0;  // epoch value; 0 means no access
  u32 who = 0;    // epoch component
  u32 pc : 24 = 0;
  u32 lane : 8 = 0;
  u32 grid : 16 = 0;  // launch number, so that a later launch can tell old from concurrent
  u32 strong : 1 = 0;
  u32 async : 1 = 0;
  u32 read : 1 = 0;
};

// One read is kept inline (the usual case); concurrent readers go to a side list.
// A cell whose bytes were written separately points to four cells, one per byte, so that two
// warps may write neighbouring bytes while a real sub-word race is still seen.
struct Cell {
  Access write;
  Access read;
  u32 more_reads = 0;
  u32 split = 0;
};

// Whoever makes an access: its epoch, and the knowledge its access is judged by.
struct Actor {
  Warp* warp;
  const Knowledge* know;
  u32 who;
  u32 value;
  u32 pc;
  u32 lane = kAnyLane;
  bool async = false;
  bool strong = false;
};

class Shadow {
 public:
  explicit Shadow(Cell* cells = nullptr) : cells_(cells) {}

  // Judges and records an access to [offset, offset + num_bytes). `name` says where in a report.
  void touch(Machine& machine, u64 offset, u32 num_bytes, bool write, const Actor& actor,
             const char* name);
  // Forgets [offset, offset + num_bytes): the host or a new owner took it over.
  void clear(u64 offset, u64 num_bytes);
  const Cell& cell(u64 offset) const { return cells_[offset / kBytesPerCell]; }
  void set_cells(Cell* cells) { cells_ = cells; }

 private:
  void touch_cell(Machine& machine, Cell& cell, u64 offset, bool write, const Actor& actor,
                  const char* name);
  void touch_bytes(Machine& machine, Cell& cell, u64 offset, u32 first, u32 last, bool write,
                   const Actor& actor, const char* name);
  bool observed(const Machine& machine, const Cell& cell, const Actor& actor) const;
  void record_read(Machine& machine, Cell& cell, const Access& access, const Actor& actor);

  Cell* cells_;
  std::vector<std::array<Cell, kBytesPerCell>> splits_{1};
  std::vector<std::vector<Access>> readers_{1};
};

}  // namespace emulator
