// Fixed-width names, bit casts and the PTX types that the front end and the engine agree on.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

namespace emulator {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;

inline constexpr int kLanes = 32;
inline constexpr u32 kFullMask = 0xffffffffu;

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline bool has_lane(u32 mask, int lane) { return (mask >> lane) & 1u; }
inline int first_lane(u32 mask) { return __builtin_ctz(mask); }

// The order is the encoding: the front end reads it back through type_names().
// clang-format off
#define EMULATOR_TYPES(X) \
  X(pred, 1) X(b8, 1) X(u8, 1) X(s8, 1) X(b16, 2) X(u16, 2) X(s16, 2) X(f16, 2) X(bf16, 2) \
  X(b32, 4) X(u32, 4) X(s32, 4) X(f32, 4) X(f16x2, 4) X(bf16x2, 4) X(tf32, 4) X(b64, 8) \
  X(u64, 8) X(s64, 8) X(f64, 8) X(b128, 16) X(e4m3, 1) X(e5m2, 1) X(e4m3x2, 2) X(e5m2x2, 2)
// clang-format on

enum class Type : u8 {
#define X(name, bytes) k_##name,
  EMULATOR_TYPES(X)
#undef X
};

inline constexpr const char* kTypeNames[] = {
#define X(name, bytes) #name,
    EMULATOR_TYPES(X)
#undef X
};

inline constexpr u32 kTypeBytes[] = {
#define X(name, bytes) bytes,
    EMULATOR_TYPES(X)
#undef X
};

inline constexpr int kNumTypes = sizeof(kTypeBytes) / sizeof(kTypeBytes[0]);

inline u32 type_bytes(Type type) { return kTypeBytes[static_cast<int>(type)]; }
inline bool is_signed(Type t) {
  return t == Type::k_s8 || t == Type::k_s16 || t == Type::k_s32 || t == Type::k_s64;
}
inline bool is_float(Type t) {
  return t == Type::k_f16 || t == Type::k_bf16 || t == Type::k_f32 || t == Type::k_f64 ||
         t == Type::k_tf32;
}

}  // namespace emulator
