// The machine: warps, CTAs, clusters, asynchronous work and what a launch carries around.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "clock.h"
#include "memory.h"
#include "program.h"
#include "report.h"
#include "shadow.h"
#include "types.h"

namespace emulator {

struct Cta;
struct Cluster;
struct Mbarrier;

enum class SplitWait : u8 { kNone, kConverge, kPoll };

// Lanes of one warp that share a program counter and a return stack.
struct Split {
  u32 pc = 0;
  u32 mask = 0;
  SplitWait wait = SplitWait::kNone;
  Mbarrier* polled = nullptr;
  u32 parity = 0;
  std::vector<u32> stack;
};

enum class WarpState : u8 {
  kRunnable,
  kAtBarrier,
  kAtMbarrier,
  kAtClusterBarrier,
  kAtWgmma,
  kDone
};

// The agents of one warp that have a clock component of their own, in order.
enum Agent : u32 { kWarpAgent, kCpAsyncAgent, kBulkReadAgent, kBulkAgent, kWgmmaAgent, kNumAgents };

struct Warp {
  Cta* cta = nullptr;
  u32 index = 0;  // in the CTA
  u32 first_component = 0;
  std::vector<u32> registers;
  std::vector<u32> preds;
  std::vector<u32> defined;  // a lane mask per register word, kept only where needed
  u32* banks[2] = {nullptr, nullptr};
  std::vector<Split> splits;
  std::size_t current = 0;  // the split that is executing
  u32 alive = 0;
  u32 started = 0;  // lanes that exist at all
  u32 carry = 0;    // the CC register
  WarpState state = WarpState::kRunnable;
  u32 waits_on = 0;       // named barrier
  u32 cluster_phase = 0;  // the phase its arrival belongs to, 0 without one
  u32 blocked_tries = 0;
  const Insn* barrier_insn = nullptr;  // the named barrier it sleeps at
  u32 last_pc = 0;

  Knowledge know;
  u32 now = 2;  // own clock; 1 is the epoch "has started"
  // synced[a][b]: the warp's clock up to which lane a is ordered after lane b. Lanes are threads:
  // only bar.warp.sync and CTA barriers order them.
  std::array<std::array<u32, kLanes>, kLanes> synced{};

  u32 wgmma_groups = 0;  // committed so far
  // Per register word: wgmmas not yet waited for, 0x100 for each that accumulates into it, 1 for
  // each that reads it as A.
  std::vector<u16> wgmma_in_flight;
  std::deque<std::pair<u32, const Insn*>> wgmma_pending;  // group and instruction
  std::vector<u8> wgmma_dirty;                            // written since the last wgmma.fence
  u32 num_in_flight = 0;

  u32 bulk_groups = 0;
  u32 cp_epoch = 0;            // advances at every commit and asynchronous arrive
  std::vector<u32> cp_groups;  // epoch of each committed cp.async group
  u32 num_registers = 0;       // per thread, for setmaxnreg
  bool cluster_arrived = false;
  std::vector<u8> local;  // per lane, one after the other

  u32 who(Agent agent) const;
  // Starts a new epoch: what was published before does not cover later accesses.
  void tick() { know.seen.raise(who(kWarpAgent), ++now); }
  u32* words(const Operand& o) { return banks[o.bank] + o.offset; }
  template <class T>
  T* reg(const Operand& o) {
    return reinterpret_cast<T*>(banks[o.bank] + o.offset);
  }
  // Orders the lanes of `mask` after all that any of them has done or been ordered after.
  void sync_lanes(u32 mask);
  u64 value(const Operand& o, int lane) {
    return o.kind == OperandKind::kReg64 ? reg<u64>(o)[lane] : reg<u32>(o)[lane];
  }
  void set(const Operand& o, int lane, u64 v) {
    if (o.kind == OperandKind::kReg64) reg<u64>(o)[lane] = v;
    if (o.kind == OperandKind::kReg32) reg<u32>(o)[lane] = static_cast<u32>(v);
  }
  u64 address(const Operand& o, int lane) { return value(o, lane) + static_cast<u64>(o.imm); }
  u32 pred(const Operand& o) const {
    return o.kind == OperandKind::kNotPred ? ~preds[o.offset] : preds[o.offset];
  }
  void set_pred(const Operand& o, u32 mask, u32 v) {
    if (o.kind == OperandKind::kPred) preds[o.offset] = (preds[o.offset] & ~mask) | (v & mask);
  }
};

struct Mbarrier {
  Cta* cta = nullptr;
  u32 address = 0;
  u32 who = 0;  // its component: value n means "phase n - 1 has completed"
  bool live = false;
  bool init_fenced = false;  // fence.mbarrier_init covered its init
  u32 init_who = 0, init_value = 0, init_pc = 0;
  u32 count = 0;
  u32 pending = 0;
  u32 phase = 0;
  s64 tx = 0;          // expected minus completed bytes of the phase
  u64 in_flight = 0;   // bytes of copies issued towards it and not yet landed
  u32 last_pc = 0;     // last operation on it, for reports
  Knowledge arriving;  // of the phase that is filling
  Knowledge done;      // of the last completed phase
};

struct NamedBarrier {
  u32 expected = 0;
  u32 arrived = 0;
  u32 true_lanes = 0, voting_lanes = 0;  // for barrier.red
  Knowledge know;
  std::vector<Warp*> waiting;
};

struct Cta {
  Cluster* cluster = nullptr;
  u32 rank = 0;
  u32 x = 0, y = 0, z = 0;
  std::vector<u8> shared;
  std::vector<u8> shared_state;  // ByteState of each byte
  std::unique_ptr<Cell[], void (*)(void*)> cells{nullptr, nullptr};
  Shadow shadow;
  std::map<u32, std::unique_ptr<Mbarrier>> mbarriers;
  // Initialised over while live: a warp may still poll them.
  std::vector<std::unique_ptr<Mbarrier>> replaced_mbarriers;
  std::array<NamedBarrier, 16> barriers;
  std::vector<std::unique_ptr<Warp>> warps;
  s64 free_registers = 0;
  u64 shared_version = 1;  // counts writes, to keep decoded wgmma operands
  u32 warps_done = 0;
  Clock at_exit;  // what the warps that have exited knew
  // The last access of each foreign agent to this CTA's shared memory: it must end before the CTA.
  std::map<u32, Access> remote_accesses;
};

struct Cluster {
  u32 id = 0;
  std::vector<std::unique_ptr<Cta>> ctas;
  u32 num_components = 1;
  u32 arrived = 0, phase = 0;
  Knowledge arriving, done;
  // What release operations on shared locations have published.
  std::unordered_map<u64, Knowledge> locations;
  u32 warps_left = 0;
};

// Completes a cluster barrier that only waited for a warp which has now exited.
void wake_cluster_barrier(Cluster& cluster);

enum class AsyncKind : u8 { kLoad, kBulkStore, kCpAsync, kWgmma };

struct AsyncOp {
  AsyncKind kind;
  Warp* warp;
  u32 group;  // the commit group (0-based) it belongs to
  u64 due = 0;
  std::function<void(Machine&)> run;
};

enum class Order : u8 { kRoundRobin, kRandom };
enum class Asynchrony : u8 { kEager, kRandom, kLate };

struct Options {
  Order order = Order::kRoundRobin;
  Asynchrony asynchrony = Asynchrony::kEager;
  u64 seed = 1;
  u32 burst = 64;
  bool checks = true;
  bool hopper_accumulate = false;
  u64 max_instructions = 100'000'000;
  u64 max_idle_instructions = 3'000'000;  // without a store, arrival or copy by anybody
  u32 resident_ctas = 132;
};

struct LaunchShape {
  std::array<u32, 3> grid, block, cluster;
  u32 dynamic_shared_bytes = 0;
  bool programmatic = false;  // may overlap the launch before it
};

// clang-format off
#define EMULATOR_COUNTERS(X) \
  X(warp_instructions) X(thread_instructions) X(wgmma_instructions) X(wgmma_macs) \
  X(mma_macs) X(tma_load_bytes) X(tma_store_bytes) X(tma_instructions) X(global_load_bytes) \
  X(global_store_bytes) X(global_sectors) X(uncoalesced_accesses) X(shared_accesses) \
  X(shared_bank_conflicts) X(atomics) X(mbarrier_waits)
// clang-format on

struct Counters {
#define X(name) u64 name = 0;
  EMULATOR_COUNTERS(X)
#undef X
};

class Machine {
 public:
  Machine() : global_shadow(memory.cells()) {}

  // Runs a kernel to its end; reports() tells what the checker saw. Returns false on a fault.
  bool launch(const Program& program, const LaunchShape& shape, const std::vector<u8>& params,
              const Options& options);
  // The host has waited for all launches: nothing before can overlap what comes next.
  void synchronise() { overlaps_previous_ = false; }

  // ---- checker
  void report(Warp* warp, const char* category, u32 other_pc, const std::string& text);
  [[noreturn]] void fault(Warp* warp, const char* category, const std::string& text);
  bool ordered(const Access& access, const Actor& actor) const;
  // As kept in shadow cells.
  u32 grid_number() const { return grid_number_ & kGridMask; }
  u32 floor_grid() const { return floor_grid_; }

  // ---- memory
  struct SharedTarget {
    Cta* cta;
    u32 offset;
  };
  SharedTarget shared_target(Warp& warp, u32 address, u32 num_bytes, const char* what);
  Space resolve(Warp& warp, Space space, u64& address);
  // Checks bounds, alignment, races and definedness; returns where the bytes are.
  void note_remote(const Actor& actor, Cta& target);
  u8* access_shared(Warp& warp, SharedTarget where, u32 num_bytes, bool write, const Actor& actor,
                    const char* what);
  u8* access_global(Warp& warp, u64 address, u32 num_bytes, bool write, const Actor& actor,
                    const char* what, u32 alignment);
  Actor actor(Warp& warp, u32 lane = kAnyLane, bool strong = false) const;

  // ---- asynchronous work
  void issue(AsyncOp op);
  // Runs a warp's operations of a kind whose group number is below `end`.
  void flush(Warp& warp, AsyncKind kind, u32 end);
  u32 new_component(Cluster& cluster);

  // ---- mbarriers
  Mbarrier& mbarrier_at(Warp& warp, SharedTarget where, const char* what);
  void mbarrier_arrive(Warp& warp, Mbarrier& barrier, u32 count, const Knowledge& know);
  void mbarrier_complete_tx(Mbarrier& barrier, u64 num_bytes);
  void mbarrier_check_phase(Mbarrier& barrier);
  void check_async_init(Warp& warp, Mbarrier& barrier);
  void wake_pollers();

  u32 random() {
    rng_ ^= rng_ << 13;
    rng_ ^= rng_ >> 7;
    rng_ ^= rng_ << 17;
    return static_cast<u32>(rng_ >> 16);
  }

  GlobalMemory memory;
  Shadow global_shadow;
  const Program* program = nullptr;
  LaunchShape shape;
  std::vector<u8> params;
  Options options;
  Counters counters;
  Reports reports;
  u64 progress = 0;  // counts what another warp could notice: stores, arrivals, copies
  // What release operations on global locations have published.
  std::unordered_map<u64, Knowledge> global_locations;

 private:
  void run();
  void admit_cluster(u32 id);
  std::unique_ptr<Cta> make_cta(Cluster& cluster, u32 rank, u32 x, u32 y, u32 z);
  std::unique_ptr<Warp> make_warp(Cta& cta, u32 index);
  void fill_specials(Warp& warp);
  void retire_clusters();
  void run_warp(Warp& warp, u32 budget);
  bool pick_split(Warp& warp);
  bool ready_to_converge(Warp& warp, const Insn& insn, u32 mask);
  void finish_warp(Warp& warp);
  void check_registers(Warp& warp, const Insn& insn, u32 mask);
  bool run_due();
  bool run_oldest();
  [[noreturn]] void report_deadlock();
  bool wake_all_pollers();

  std::vector<std::unique_ptr<Cluster>> clusters_;
  std::vector<Warp*> warps_;
  std::deque<AsyncOp> queue_;
  std::vector<std::vector<u32>> spare_registers_;
  u32 next_cluster_ = 0, num_clusters_ = 0;
  u64 rng_ = 1;
  u64 turn_ = 0;
  std::size_t round_robin_ = 0;
  u32 grid_number_ = 0;
  u32 floor_grid_ = 0;
  bool overlaps_previous_ = false;
  bool cluster_finished_ = false;
};

inline u32 Warp::who(Agent agent) const {
  // One wgmma component per warpgroup: wait_group is taken as a warpgroup collective, so one
  // warp's wait proves the reads of all four. Kernels that release a stage once per warpgroup
  // rely on it, as every CUTLASS pipeline does.
  const u32 first =
      agent == kWgmmaAgent ? first_component - (index & 3u) * kNumAgents : first_component;
  return cta->cluster->id << kComponentBits | (first + agent);
}

}  // namespace emulator
