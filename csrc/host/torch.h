// The only header of host code that names torch: the stable ABI, one library for every torch
// >= 2.11. Keeping it in one place makes a retreat to ATen, or a move to a newer ABI target, a
// one-file change.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>

namespace seekernel {

using Tensor = torch::stable::Tensor;
using torch::headeronly::ScalarType;
using OptionalTensor = std::optional<Tensor>;

}  // namespace seekernel
