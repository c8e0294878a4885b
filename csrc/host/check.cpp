#include "host/check.h"

#include <sstream>

namespace seekernel {
namespace {

template <class Range>
std::string bracketed(const Range& values) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < values.size(); ++i) text << (i ? ", " : "") << values[i];
  text << ']';
  return text.str();
}

std::string describe_sizes(std::initializer_list<Size> sizes) {
  std::string text = "[";
  const char* separator = "";
  for (const Size& size : sizes) {
    text += separator + (size.dim ? size.dim->describe() : std::to_string(size.literal));
    separator = ", ";
  }
  return text + "]";
}

}  // namespace

const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Float8_e4m3fn:
      return "float8_e4m3fn";
    case ScalarType::Float8_e5m2:
      return "float8_e5m2";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

std::string Dim::describe() const {
  return value_ < 0 ? std::string(name_) : std::string(name_) + "=" + std::to_string(value_);
}

void TensorCheck::fail(const std::string& expected) const {
  const auto device = tensor_.is_cpu() ? std::string("cpu")
                                       : "device " + std::to_string(tensor_.get_device_index());
  throw std::runtime_error(std::string(op_) + ": " + name_ + ": expected " + expected +
                           ", got shape " + bracketed(tensor_.sizes()) + ", strides " +
                           bracketed(tensor_.strides()) + ", dtype " +
                           dtype_name(tensor_.scalar_type()) + ", " + device);
}

const TensorCheck& TensorCheck::shape(std::initializer_list<Size> sizes) const {
  const auto actual = tensor_.sizes();
  bool match = actual.size() == sizes.size();
  size_t i = 0;
  for (const Size& size : sizes) {
    if (!match) break;
    match = size.dim ? size.dim->bind(actual[i]) : actual[i] == size.literal;
    ++i;
  }
  if (!match) fail("shape " + describe_sizes(sizes));
  return *this;
}

const TensorCheck& TensorCheck::dtype(std::initializer_list<ScalarType> allowed) const {
  std::string names;
  for (ScalarType type : allowed) {
    if (tensor_.scalar_type() == type) return *this;
    names += (names.empty() ? "" : " or ") + std::string(dtype_name(type));
  }
  fail("dtype " + names);
}

const TensorCheck& TensorCheck::same_dtype(const char* other_name, const Tensor& other) const {
  if (tensor_.scalar_type() != other.scalar_type()) {
    fail(std::string("dtype ") + dtype_name(other.scalar_type()) + " as " + other_name);
  }
  return *this;
}

const TensorCheck& TensorCheck::same_device(const char* other_name, const Tensor& other) const {
  if (tensor_.is_cpu() != other.is_cpu() ||
      (!tensor_.is_cpu() && tensor_.get_device_index() != other.get_device_index())) {
    fail(std::string("the device of ") + other_name);
  }
  return *this;
}

const TensorCheck& TensorCheck::contiguous() const {
  if (!tensor_.is_contiguous()) fail("a contiguous tensor");
  return *this;
}

const TensorCheck& TensorCheck::last_dim_contiguous() const {
  const auto strides = tensor_.strides();
  const auto sizes = tensor_.sizes();
  if (!sizes.empty() && sizes[sizes.size() - 1] > 1 && strides[strides.size() - 1] != 1) {
    fail("stride 1 in the last dimension");
  }
  return *this;
}

void Checker::require(bool condition, const std::string& message) const {
  if (!condition) fail(message);
}

void Checker::fail(const std::string& message) const {
  throw std::runtime_error(std::string(op_) + ": " + message);
}

}  // namespace seekernel
