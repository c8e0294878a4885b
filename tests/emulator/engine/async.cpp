// The queue of asynchronous work: eager, after a random delay, or as late as legal.

#include "machine.h"

namespace emulator {
namespace {

constexpr u64 kNever = ~0ull;
// In scheduler turns. Late work still lands in the end: a warp that spins on memory must not keep
// the copy that another one waits for from ever happening.
constexpr u32 kLongestDelay = 200;
constexpr u32 kLate = 4000;

}  // namespace

void Machine::issue(AsyncOp op) {
  ++progress;
  if (options.asynchrony == Asynchrony::kEager) {
    op.run(*this);
    return;
  }
  const bool late = options.asynchrony == Asynchrony::kLate;
  op.due = turn_ + (late ? kLate : random() % kLongestDelay);
  queue_.push_back(std::move(op));
}

void Machine::flush(Warp& warp, AsyncKind kind, u32 end) {
  for (std::size_t i = 0; i < queue_.size();) {
    if (queue_[i].warp != &warp || queue_[i].kind != kind || queue_[i].group >= end) {
      ++i;
      continue;
    }
    const auto body = std::move(queue_[i].run);
    queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(i));
    body(*this);
  }
}

bool Machine::run_due() {
  bool any = false;
  // One warp's wgmmas share accumulators and complete in order; all else may overtake.
  std::vector<Warp*> blocked;
  for (std::size_t i = 0; i < queue_.size();) {
    AsyncOp& op = queue_[i];
    bool go = op.due <= turn_;
    if (op.kind == AsyncKind::kWgmma) {
      for (Warp* warp : blocked) go &= warp != op.warp;
      if (!go) blocked.push_back(op.warp);
    }
    if (!go) {
      ++i;
      continue;
    }
    const auto body = std::move(op.run);
    queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(i));
    const std::size_t left = queue_.size();
    body(*this);
    any = true;
    // What flushed others moved the rest: to go on from i would pass over one, and let a later
    // wgmma of its warp overtake it.
    if (queue_.size() != left) {
      i = 0;
      blocked.clear();
    }
  }
  return any;
}

bool Machine::run_oldest() {
  if (queue_.empty()) return false;
  if (options.asynchrony == Asynchrony::kRandom) {
    u64 next = kNever;
    for (const AsyncOp& op : queue_) next = std::min(next, op.due);
    turn_ = std::max(turn_, next);
    if (run_due()) return true;
  }
  // Loads first: they are what a stalled warp can be waiting for.
  std::size_t pick = 0;
  for (std::size_t i = 0; i < queue_.size(); ++i) {
    if (queue_[i].kind == AsyncKind::kLoad || queue_[i].kind == AsyncKind::kCpAsync) {
      pick = i;
      break;
    }
  }
  const auto body = std::move(queue_[pick].run);
  queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(pick));
  body(*this);
  return true;
}

}  // namespace emulator
