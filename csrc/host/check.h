// Boundary checks of ops: symbolic sizes are bound on first use, one statement states one tensor.
//
//   Checker check("rms_norm");
//   Dim m("m"), n("n");
//   check("x", x).shape({m, n}).dtype({ScalarType::Float, ScalarType::BFloat16}).contiguous();
//   check("weight", weight).shape({n}).same_dtype("x", x);
//
// A failure throws one message: op, tensor, what was expected, the actual shape, strides, dtype,
// device.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "host/torch.h"

namespace seekernel {

// A size shared by several tensors of one call: unbound until its first use, or fixed from the
// start.
class Dim {
 public:
  explicit Dim(const char* name) : name_(name) {}
  Dim(const char* name, int64_t value) : name_(name), value_(value) {}
  bool bind(int64_t size) {
    if (value_ < 0) value_ = size;
    return value_ == size;
  }
  std::string describe() const;
  int64_t value() const { return value_; }
  operator int64_t() const { return value_; }

 private:
  const char* name_;
  int64_t value_ = -1;
};

// One expected size: a shared Dim, or a literal.
struct Size {
  Size(Dim& dim) : dim(&dim) {}            // NOLINT(google-explicit-constructor)
  Size(int64_t value) : literal(value) {}  // NOLINT(google-explicit-constructor)
  Dim* dim = nullptr;
  int64_t literal = -1;
};

class TensorCheck {
 public:
  TensorCheck(const char* op, const char* name, const Tensor& tensor)
      : op_(op), name_(name), tensor_(tensor) {}
  const TensorCheck& shape(std::initializer_list<Size> sizes) const;
  const TensorCheck& dtype(std::initializer_list<ScalarType> allowed) const;
  const TensorCheck& same_dtype(const char* other_name, const Tensor& other) const;
  const TensorCheck& same_device(const char* other_name, const Tensor& other) const;
  const TensorCheck& contiguous() const;
  // Rows may be strided, elements of the last dimension must be adjacent.
  const TensorCheck& last_dim_contiguous() const;
  [[noreturn]] void fail(const std::string& expected) const;

 private:
  const char* op_;
  const char* name_;
  const Tensor& tensor_;
};

class Checker {
 public:
  explicit Checker(const char* op) : op_(op) {}
  TensorCheck operator()(const char* name, const Tensor& tensor) const {
    return TensorCheck(op_, name, tensor);
  }
  // For scalars and relations between sizes: `message` says what was expected and what was got.
  void require(bool condition, const std::string& message) const;
  [[noreturn]] void fail(const std::string& message) const;

 private:
  const char* op_;
};

const char* dtype_name(ScalarType type);

}  // namespace seekernel
