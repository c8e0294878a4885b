#include "report.h"

#include <cstdarg>
#include <cstdio>

namespace emulator {

bool Reports::add(const std::string& category, u32 pc, u32 other_pc, const std::string& text) {
  if (!seen_.insert(category + format(" %u %u", pc, other_pc)).second) return true;
  if (lines_.size() < kMaxKept) lines_.push_back(category + ": " + text);
  return seen_.size() < 8 * kMaxKept;
}

void Reports::clear() {
  lines_.clear();
  seen_.clear();
}

std::string format(const char* pattern, ...) {
  va_list args;
  va_start(args, pattern);
  char buffer[2048];
  std::vsnprintf(buffer, sizeof buffer, pattern, args);
  va_end(args);
  return buffer;
}

}  // namespace emulator
