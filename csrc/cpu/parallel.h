// Work sharing through torch's own thread pool.
#pragma once

#include <atomic>

#include "host/torch.h"

namespace seekernel::cpu {

// Calls f(begin, end) over [0, count) in chunks of `chunk`, handed out dynamically: a thread that
// is held up by a busy core takes fewer chunks. Runs inline when one chunk is all there is.
template <class F>
void parallel_chunks(int64_t count, int64_t chunk, const F& f) {
  const int64_t num_chunks = (count + chunk - 1) / chunk;
  const int64_t num_threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t workers = num_threads < num_chunks ? num_threads : num_chunks;
  if (workers <= 1) {
    if (count > 0) f(int64_t{0}, count);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    for (;;) {
      const int64_t begin = next.fetch_add(1, std::memory_order_relaxed) * chunk;
      if (begin >= count) return;
      f(begin, begin + chunk < count ? begin + chunk : count);
    }
  });
}

}  // namespace seekernel::cpu
