#include "jit/registry.h"

#include <memory>
#include <mutex>
#include <stdexcept>
#include <unordered_map>

namespace seekernel::jit {
namespace {

struct Registry {
  std::mutex mutex;
  std::unordered_map<KernelKey, std::unique_ptr<LoadedKernel>, KeyHash> kernels;
  Resolver resolver;
};

// Never destroyed: at process exit the driver may be gone before a destructor runs.
Registry& registry() {
  static Registry& instance = *new Registry;
  return instance;
}

const Kernel* find(const KernelKey& key) {
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().kernels.find(key);
  return found == registry().kernels.end() ? nullptr : &found->second->kernel();
}

}  // namespace

void set_resolver(Resolver resolver) {
  const std::lock_guard lock(registry().mutex);
  registry().resolver = std::move(resolver);
}

bool has_resolver() {
  const std::lock_guard lock(registry().mutex);
  return static_cast<bool>(registry().resolver);
}

const Kernel& kernel(const KernelKey& key, const KernelTraits& traits) {
  if (const Kernel* found = find(key)) return *found;
  Resolver resolver;
  {
    const std::lock_guard lock(registry().mutex);
    resolver = registry().resolver;
  }
  if (!resolver) throw std::runtime_error(std::string(key.family) + ": no resolver is set");
  // Not under the mutex: the resolver runs Python, which may hand the GIL to a thread that
  // launches.
  const Cubin cubin = resolver(key);
  auto loaded = std::make_unique<LoadedKernel>(cubin.bytes, cubin.symbol, traits);
  const std::lock_guard lock(registry().mutex);
  return registry().kernels.try_emplace(key, std::move(loaded)).first->second->kernel();
}

size_t num_kernels() {
  const std::lock_guard lock(registry().mutex);
  return registry().kernels.size();
}

void clear_kernels() {
  const std::lock_guard lock(registry().mutex);
  registry().kernels.clear();
}

}  // namespace seekernel::jit
