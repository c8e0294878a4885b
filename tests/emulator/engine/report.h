// Reports of the checker and the exception that ends a launch.
#pragma once

#include <exception>
#include <set>
#include <string>
#include <vector>

#include "types.h"

namespace emulator {

// Thrown by a handler after a report that leaves nothing sensible to go on with.
struct Fault : std::exception {
  const char* what() const noexcept override { return "kernel fault"; }
};

struct LoadError : std::exception {
  explicit LoadError(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

class Reports {
 public:
  static constexpr std::size_t kMaxKept = 24;

  // Keeps one report per category and pair of instructions: a loop repeats itself.
  // Returns false once so many were dropped that the launch should stop.
  bool add(const std::string& category, u32 pc, u32 other_pc, const std::string& text);
  void clear();
  const std::vector<std::string>& lines() const { return lines_; }

 private:
  std::vector<std::string> lines_;
  std::set<std::string> seen_;
};

// printf into a string.
std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emulator
