// Vector clocks: what an agent knows to have happened.
//
// An epoch is (component, value). Components number the agents of one cluster: its warps, their
// cp.async and bulk groups, its warpgroups' wgmma groups, its mbarriers' phases. A component id
// is global: cluster << kComponentBits | index. Clusters only learn of each other through global
// memory, so a clock is dense over its home cluster and keeps shared snapshots of the others:
// a grid of hundreds of independent CTAs costs nothing extra.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "types.h"

namespace emulator {

inline constexpr u32 kComponentBits = 12;
inline constexpr u32 kMaxComponents = 1u << kComponentBits;
// Component 0 of every cluster: 1 once the launches before this one are known to have finished.
inline constexpr u32 kPredecessor = 0;

class Clock {
 public:
  Clock() : Clock(0) {}
  explicit Clock(u32 cluster) : cluster_(cluster) {}

  u32 get(u32 who) const {
    const u32 index = who & (kMaxComponents - 1);
    if (who >> kComponentBits == cluster_) return index < own_.size() ? own_[index] : 0;
    return get_foreign(who >> kComponentBits, index);
  }
  void raise(u32 who, u32 value);
  void join(const Clock& other);
  bool knows_predecessor() const { return !own_.empty() && own_[kPredecessor] != 0; }

 private:
  using Snapshot = std::shared_ptr<const std::vector<u32>>;

  u32 get_foreign(u32 cluster, u32 index) const;
  void join_own(const std::vector<u32>& other);
  void join_foreign(u32 cluster, const Snapshot& other);

  u32 cluster_;
  std::vector<u32> own_;
  std::vector<std::pair<u32, Snapshot>> foreign_;
};

// What an agent knows. Barriers pass on all of it, because fences act with what surrounds them:
// "every thread fences, CTA barrier, one thread signals" publishes the writes of all threads.
struct Knowledge {
  Knowledge() : Knowledge(0) {}
  explicit Knowledge(u32 cluster)
      : seen(cluster), async(cluster), fenced(cluster), heard(cluster) {}
  void join(const Knowledge& other) {
    seen.join(other.seen);
    async.join(other.async);
    fenced.join(other.fenced);
    heard.join(other.heard);
  }
  Clock seen;    // happened before, for accesses through the generic proxy
  Clock async;   // the part that the async proxy is sure to see: only fence.proxy.async adds to it
  Clock fenced;  // the part that a fence has made visible: what relaxed writes publish
  Clock heard;   // read from relaxed locations: the next fence adds it to `seen`
};

}  // namespace emulator
