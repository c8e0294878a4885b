// CUDA boundary of bmm_nt: checks, tile, tensor maps, launch.
#include <algorithm>
#include <cstring>

// The host's headers come first: seekernel/ptx/types.cuh gives the integer names of NVRTC.
#include "driver/tensor_map.h"
#include "host/check.h"
#include "host/launch.h"
//
#include <seekernel/gemm/sm90_bf16_bmm_nt.cuh>

namespace seekernel::cuda {
namespace {

constexpr auto kBf16 = {ScalarType::BFloat16};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A stack of matrices in boxes of 64 columns; strides of dimensions of one may be anything in
// torch.
tensor_map_t stack_map(const Checker& check, const char* name, const Tensor& tensor, int box_rows) {
  cu::TensorMap map;
  map.address = reinterpret_cast<uint64_t>(tensor.const_data_ptr());
  map.rank = 3;
  map.element = cu::ElementType::kBfloat16;
  map.swizzle = cu::Swizzle::k128;
  const int64_t row_bytes = divide_up(tensor.size(2), 8) * 16;
  for (uint32_t i = 0; i < 3; ++i) map.dims[i] = static_cast<uint64_t>(tensor.size(2 - i));
  map.strides_bytes[0] =
      static_cast<uint64_t>(tensor.size(1) > 1 ? tensor.stride(1) * 2 : row_bytes);
  map.strides_bytes[1] =
      static_cast<uint64_t>(tensor.size(0) > 1 ? tensor.stride(0) * 2 : row_bytes);
  if (map.address % 16 != 0 || map.strides_bytes[0] % 16 != 0 || map.strides_bytes[1] % 16 != 0) {
    check(name, tensor).fail("rows that start at multiples of 16 bytes");
  }
  map.box[0] = 64;
  map.box[1] = static_cast<uint32_t>(box_rows);
  map.box[2] = 1;
  const cu::CUtensorMap encoded = cu::tensor_maps().get(map);
  tensor_map_t result;
  std::memcpy(&result, &encoded, sizeof result);
  return result;
}

template <int kBlockM>
void launch_bmm(const Checker& check, const Tensor& a, const Tensor& b, const Tensor& out) {
  using Config = sm90_bf16_bmm_nt_config<kBlockM, 4>;
  using Plan = sm90_bf16_bmm_nt_detail::Plan<Config>;
  const LaunchShape shape{.grid = {static_cast<unsigned>(divide_up(out.size(1), kBlockM)),
                                   static_cast<unsigned>(divide_up(out.size(2), 128)),
                                   static_cast<unsigned>(out.size(0))},
                          .block = {Config::kThreads},
                          .shared_bytes = Plan::kBytes,
                          .pdl = true};
  launch(shape, current_stream(a.get_device_index()), "bmm_nt", sm90_bf16_bmm_nt<Config>,
         stack_map(check, "a", a, kBlockM), stack_map(check, "b", b, 128),
         stack_map(check, "out", out, 64), static_cast<int>(a.size(2)));
}

void bmm_nt(const Tensor& a, const Tensor& b, const Tensor& out) {
  const Checker check("bmm_nt");
  Dim g("g"), m("m"), n("n"), k("k");
  check("a", a).shape({g, m, k}).dtype(kBf16).last_dim_contiguous();
  check("b", b).shape({g, n, k}).dtype(kBf16).last_dim_contiguous().same_device("a", a);
  check("out", out).shape({g, m, n}).dtype(kBf16).last_dim_contiguous().same_device("a", a);
  check.require(k > 0 && k % 8 == 0 && n % 8 == 0,
                "expected k and n to be multiples of 8, k positive, got " + k.describe() + ", " +
                    n.describe());
  check.require(g <= 65535 && divide_up(n, 128) <= 65535,
                "expected at most 65535 matrices and blocks of n, got " + g.describe());
  if (g == 0 || m == 0 || n == 0) return;
  const DeviceGuard guard(a.get_device_index());
  // Half the rows of a tile would lie idle; at few tokens the weights' bytes are all that counts.
  if (m <= 64) {
    launch_bmm<64>(check, a, b, out);
  } else {
    launch_bmm<128>(check, a, b, out);
  }
}

}  // namespace
}  // namespace seekernel::cuda

STABLE_TORCH_LIBRARY_IMPL(seekernel, CUDA, m) {
  m.impl("bmm_nt", TORCH_BOX(&seekernel::cuda::bmm_nt));
}
