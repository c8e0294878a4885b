// A driver that launches nothing: it lets a machine without a GPU measure the host cost of a launch
// and check what would have been launched.
#pragma once

#include <vector>

#include "driver/driver.h"

namespace seekernel::jit {

using namespace cu;  // the driver is this folder's vocabulary

struct LastLaunch {
  LaunchConfig config;
  LaunchAttribute attributes[4];
  void** parameters;  // valid during the launch only
  int64_t num_launches;
  int64_t num_encodes;
  int64_t num_loads;
};

const Driver* null_driver();
LastLaunch& last_launch();

}  // namespace seekernel::jit
