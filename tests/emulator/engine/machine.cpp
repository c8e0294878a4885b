// A launch: building CTAs and clusters, admitting them, retiring them.

#include "machine.h"

#include <cstdlib>

namespace emulator {
namespace {

constexpr u32 kRegisterFile = 65536;  // 32-bit registers of an SM
constexpr u32 kSharedLimit = 227 * 1024;

u32 volume(const std::array<u32, 3>& sizes) { return sizes[0] * sizes[1] * sizes[2]; }

u32 round_up(u32 value, u32 multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

bool Machine::launch(const Program& kernel, const LaunchShape& launch_shape,
                     const std::vector<u8>& launch_params, const Options& launch_options) {
  program = &kernel;
  shape = launch_shape;
  params = launch_params;
  options = launch_options;
  counters = Counters{};
  reports.clear();
  clusters_.clear();
  warps_.clear();
  queue_.clear();
  spare_registers_.clear();
  global_locations.clear();
  rng_ = options.seed * 0x9e3779b97f4a7c15ull + 0x1234567;
  turn_ = 0;
  round_robin_ = 0;
  next_cluster_ = 0;
  progress = 0;
  cluster_finished_ = false;
  ++grid_number_;
  // A programmatic launch may overlap its predecessor, and that one its own, back to the last
  // launch that had to wait for everything before it.
  if (!(shape.programmatic && overlaps_previous_)) floor_grid_ = grid_number_;
  overlaps_previous_ = true;
  num_clusters_ = volume(shape.grid) / volume(shape.cluster);
  bool finished = false;
  try {
    run();
    finished = true;
  } catch (const Fault&) {
  }
  clusters_.clear();
  warps_.clear();
  queue_.clear();
  return finished;
}

void Machine::admit_cluster(u32 id) {
  auto cluster = std::make_unique<Cluster>();
  cluster->id = id;
  cluster->arriving = cluster->done = Knowledge(id);
  const auto& c = shape.cluster;
  const u32 per_row = shape.grid[0] / c[0];
  const u32 per_plane = per_row * (shape.grid[1] / c[1]);
  const u32 x0 = id % per_row * c[0];
  const u32 y0 = id % per_plane / per_row * c[1];
  const u32 z0 = id / per_plane * c[2];
  for (u32 rank = 0; rank < volume(c); ++rank) {
    cluster->ctas.push_back(make_cta(*cluster, rank, x0 + rank % c[0], y0 + rank / c[0] % c[1],
                                     z0 + rank / (c[0] * c[1])));
  }
  clusters_.push_back(std::move(cluster));
}

std::unique_ptr<Cta> Machine::make_cta(Cluster& cluster, u32 rank, u32 x, u32 y, u32 z) {
  auto cta = std::make_unique<Cta>();
  cta->cluster = &cluster;
  cta->rank = rank;
  cta->x = x;
  cta->y = y;
  cta->z = z;
  const u32 start =
      round_up(kSharedStart + program->static_shared_bytes, program->dynamic_shared_align);
  const u32 used = start + shape.dynamic_shared_bytes;
  if (used > kSharedStart + kSharedLimit) {
    fault(nullptr, "BOUNDS",
          format("%u bytes of shared memory, expected at most %u", used - kSharedStart,
                 kSharedLimit));
  }
  cta->shared.assign(used, 0xff);
  cta->shared_state.assign(used, kUninitialised);
  cta->cells = {static_cast<Cell*>(std::calloc(used / kBytesPerCell + 1, sizeof(Cell))), std::free};
  cta->shadow.set_cells(cta->cells.get());
  cta->at_exit = Clock(cluster.id);
  for (NamedBarrier& barrier : cta->barriers) barrier.know = Knowledge(cluster.id);
  const u32 num_warps = (volume(shape.block) + kLanes - 1) / kLanes;
  // Whole warpgroups get components, so that the wgmma component of a warpgroup always exists.
  const u32 first = cluster.num_components;
  cluster.num_components += round_up(num_warps, 4) * kNumAgents;
  if (cluster.num_components >= kMaxComponents) {
    throw LoadError("cluster: expected at most 4096 warps, groups and mbarriers in all");
  }
  for (u32 i = 0; i < num_warps; ++i) {
    cta->warps.push_back(make_warp(*cta, i));
    Warp& warp = *cta->warps.back();
    warp.first_component = first + i * kNumAgents;
    warp.know = Knowledge(cluster.id);
    warp.know.seen.raise(warp.who(kWarpAgent), warp.now);
    if (floor_grid_ == grid_number_) {
      warp.know.seen.raise(cluster.id << kComponentBits | kPredecessor, 1);
    }
    warps_.push_back(&warp);
  }
  cluster.warps_left += num_warps;
  // What launch did not hand out stays in the pool; a CTA is taken to have the SM to itself.
  cta->free_registers = static_cast<s64>(kRegisterFile) -
                        static_cast<s64>(program->registers_per_thread) * kLanes * num_warps;
  return cta;
}

std::unique_ptr<Warp> Machine::make_warp(Cta& cta, u32 index) {
  auto warp = std::make_unique<Warp>();
  warp->cta = &cta;
  warp->index = index;
  if (spare_registers_.empty()) {
    warp->registers.assign(static_cast<std::size_t>(program->num_words) * kLanes + 16, 0xffc0deadu);
  } else {
    warp->registers = std::move(spare_registers_.back());
    spare_registers_.pop_back();
  }
  warp->preds.assign(program->num_preds + 1, 0);
  if (program->tracks_definedness) {
    warp->defined.assign(program->num_words, kFullMask);
    for (u32 i = 0; i < program->num_words; ++i) {
      if (program->suspects[i]) warp->defined[i] = 0;
    }
  }
  warp->wgmma_in_flight.assign(program->num_words, 0);
  warp->wgmma_dirty.assign(program->num_words, 1);
  warp->banks[0] = warp->registers.data();
  warp->banks[1] = const_cast<u32*>(program->constants.data());
  warp->local.assign(static_cast<std::size_t>(program->local_bytes) * kLanes, 0xff);
  warp->num_registers = program->registers_per_thread;
  const u32 num_threads = volume(shape.block);
  warp->alive = kFullMask;
  if (index * kLanes + kLanes > num_threads) {
    warp->alive = (1u << (num_threads - index * kLanes)) - 1;
  }
  warp->started = warp->alive;
  Split whole;
  whole.mask = warp->alive;
  warp->splits.push_back(whole);
  fill_specials(*warp);
  return warp;
}

void Machine::fill_specials(Warp& warp) {
  const Cta& cta = *warp.cta;
  const auto& block = shape.block;
  const auto& grid = shape.grid;
  const auto& cluster = shape.cluster;
  const std::array<u32, 3> position = {cta.x, cta.y, cta.z};
  const u32 num_warps = (volume(block) + kLanes - 1) / kLanes;
  for (const SpecialRegister& special : program->specials) {
    const std::string& name = special.name;
    const int axis = name.size() > 2 && name[name.size() - 2] == '.' ? name.back() - 'x' : 0;
    const std::string stem = name.substr(0, name.find('.'));
    for (u32 lane = 0; lane < kLanes; ++lane) {
      const u32 thread = warp.index * kLanes + lane;
      const std::array<u32, 3> tid = {thread % block[0], thread / block[0] % block[1],
                                      thread / (block[0] * block[1])};
      u64 v = 0;
      if (stem == "%tid") v = tid[axis];
      if (stem == "%ntid") v = block[axis];
      if (stem == "%ctaid") v = position[axis];
      if (stem == "%nctaid") v = grid[axis];
      if (stem == "%clusterid") v = position[axis] / cluster[axis];
      if (stem == "%nclusterid") v = grid[axis] / cluster[axis];
      if (stem == "%cluster_ctaid") v = position[axis] % cluster[axis];
      if (stem == "%cluster_nctaid") v = cluster[axis];
      if (stem == "%cluster_ctarank") v = cta.rank;
      if (stem == "%cluster_nctarank") v = volume(cluster);
      if (stem == "%is_explicit_cluster") v = volume(cluster) > 1;
      if (stem == "%laneid") v = lane;
      if (stem == "%warpid") v = warp.index;
      if (stem == "%nwarpid") v = num_warps;
      if (stem == "%smid") v = cta.cluster->id * volume(cluster) % options.resident_ctas + cta.rank;
      if (stem == "%nsmid") v = options.resident_ctas;
      if (stem == "%gridid") v = grid_number_;
      if (stem == "%lanemask_eq") v = 1u << lane;
      if (stem == "%lanemask_lt") v = (1u << lane) - 1;
      if (stem == "%lanemask_le") v = (2ull << lane) - 1;
      if (stem == "%lanemask_gt") v = ~((2ull << lane) - 1) & kFullMask;
      if (stem == "%lanemask_ge") v = ~((1u << lane) - 1);
      if (stem == "%dynamic_smem_size") v = shape.dynamic_shared_bytes;
      if (stem == "%total_smem_size") v = static_cast<u32>(cta.shared.size()) - kSharedStart;
      u32* words = warp.banks[0] + special.offset;
      if (special.wide) {
        reinterpret_cast<u64*>(words)[lane] = v;
      } else {
        words[lane] = static_cast<u32>(v);
      }
    }
  }
}

void Machine::retire_clusters() {
  for (std::size_t i = 0; i < clusters_.size();) {
    Cluster& cluster = *clusters_[i];
    if (cluster.warps_left != 0) {
      ++i;
      continue;
    }
    const auto belongs = [&](Warp* warp) { return warp->cta->cluster == &cluster; };
    for (bool again = true; again;) {
      again = false;
      for (auto op = queue_.begin(); op != queue_.end(); ++op) {
        if (!belongs(op->warp)) continue;
        const auto body = std::move(op->run);
        queue_.erase(op);
        body(*this);
        again = true;
        break;
      }
    }
    for (const auto& cta : cluster.ctas) {
      for (const auto& [address, barrier] : cta->mbarriers) {
        if (!barrier->live || barrier->tx == 0) continue;
        report(nullptr, "MBARRIER", barrier->last_pc,
               format("CTA %u,%u,%u ends with %lld bytes still expected by mbarrier 0x%x, last "
                      "used at %s",
                      cta->x, cta->y, cta->z, static_cast<long long>(barrier->tx), address,
                      program->location(barrier->last_pc).c_str()));
      }
      for (const auto& warp : cta->warps) spare_registers_.push_back(std::move(warp->registers));
    }
    std::erase_if(warps_, belongs);
    clusters_.erase(clusters_.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

}  // namespace emulator
