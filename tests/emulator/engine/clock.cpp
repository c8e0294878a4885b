#include "clock.h"

#include <algorithm>

namespace emulator {

void Clock::raise(u32 who, u32 value) {
  const u32 index = who & (kMaxComponents - 1);
  if (index >= own_.size()) own_.resize(std::max<std::size_t>(index + 1, 64), 0);
  own_[index] = std::max(own_[index], value);
}

void Clock::join(const Clock& other) {
  if (other.cluster_ == cluster_) {
    join_own(other.own_);
  } else {
    if (other.knows_predecessor()) raise(kPredecessor, 1);
    if (!other.own_.empty()) {
      join_foreign(other.cluster_, std::make_shared<const std::vector<u32>>(other.own_));
    }
  }
  for (const auto& [cluster, snapshot] : other.foreign_) {
    // Knowledge about the home cluster can come back through another one.
    if (cluster == cluster_) {
      join_own(*snapshot);
    } else {
      join_foreign(cluster, snapshot);
    }
  }
}

u32 Clock::get_foreign(u32 cluster, u32 index) const {
  for (const auto& [id, snapshot] : foreign_) {
    if (id == cluster) return index < snapshot->size() ? (*snapshot)[index] : 0;
  }
  return 0;
}

void Clock::join_own(const std::vector<u32>& other) {
  if (other.size() > own_.size()) own_.resize(other.size(), 0);
  for (std::size_t i = 0; i < other.size(); ++i) own_[i] = std::max(own_[i], other[i]);
}

void Clock::join_foreign(u32 cluster, const Snapshot& other) {
  for (auto& [id, snapshot] : foreign_) {
    if (id != cluster) continue;
    if (snapshot == other) return;
    auto merged = std::make_shared<std::vector<u32>>(*snapshot);
    if (other->size() > merged->size()) merged->resize(other->size(), 0);
    for (std::size_t i = 0; i < other->size(); ++i) {
      (*merged)[i] = std::max((*merged)[i], (*other)[i]);
    }
    snapshot = std::move(merged);
    return;
  }
  foreign_.emplace_back(cluster, other);
}

}  // namespace emulator
