#include "host/fused_check.h"

namespace seekernel {

void check_quantized(const Checker& check, const char* q_name, const Tensor& q,
                     const char* scale_name, const Tensor& scale, Dim& m, Dim& n,
                     const char* like_name, const Tensor& like) {
  check(q_name, q).shape({m, n}).dtype({ScalarType::Float8_e4m3fn}).last_dim_contiguous();
  check(q_name, q).same_device(like_name, like);
  Dim groups("ceil(n/128)", (n + 127) / 128), padded_m("round_up(m, 4)", (m + 3) / 4 * 4);
  check(scale_name, scale).shape({groups, padded_m}).dtype({ScalarType::Float});
  check(scale_name, scale).last_dim_contiguous().same_device(like_name, like);
}

void check_norm_outputs(const Checker& check, const char* out_name, const NormOutputs& outputs,
                        Dim& m, Dim& n, const char* like_name, const Tensor& like) {
  check.require(outputs.q.has_value() == outputs.scale.has_value(),
                "q and scale: expected both or neither");
  check.require(outputs.out || outputs.q,
                std::string(out_name) + ", q: expected at least one of them, got neither");
  if (outputs.out) {
    check(out_name, *outputs.out).shape({m, n}).same_dtype(like_name, like);
    check(out_name, *outputs.out).same_device(like_name, like).last_dim_contiguous();
  }
  if (outputs.q) {
    check_quantized(check, "q", *outputs.q, "scale", *outputs.scale, m, n, like_name, like);
  }
}

}  // namespace seekernel
