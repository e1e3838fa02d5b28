// A packed block of 32 weights to floats (exactly the GGUF formula in float32) or to halves.
#pragma once
#include "tile.cuh"

// Unsigned codes of elements 4g..4g+3, one a byte; Q8_0 codes are offset by 128.
template <int T>
INLINE u32 block_codes(const RawBlock& raw, int g) {
  if (T == Q8_0) return (g < 4 ? word(raw.quants, g) : word(raw.more, g - 4)) ^ 0x80808080u;
  if (T == MXFP4) {
    const u32 w = word(raw.quants, g >> 1);
    return mxfp4_codes(g & 1 ? w >> 16 : w);
  }
  return codes<T>(word(raw.quants, g >> 1), raw.high, g);
}
// A weight is (code - center) · scale - minimum; Q6_K has one scale for each half of the block.
template <int T>
__host__ __device__ constexpr float code_center() {
  return T == Q4_0 ? 8.f : T == Q5_0 ? 16.f : T == Q8_0 ? 128.f : T == Q6_K ? 32.f : T == MXFP4 ? 12.f : 0.f;
}
template <int T>
INLINE float block_scale(const RawBlock& raw, int half) {
  if (T == MXFP4) return raw.scale > 1 ? __uint_as_float((raw.scale - 1) << 23) : raw.scale ? 0x1p-127f : 0x1p-128f;
  if (T == Q4_K || T == Q5_K) return half_to_float(raw.scale & 0xffff) * (float)(raw.scale2 & 63);
  if (T == Q6_K) return half_to_float(raw.scale2) * (float)(signed char)(raw.scale >> (8 * half));
  return half_to_float(raw.scale & 0xffff);
}
template <int T>
INLINE float block_minimum(const RawBlock& raw) {
  if (T == Q4_1 || T == Q5_1) return -half_to_float(raw.scale >> 16);
  if (T == Q4_K || T == Q5_K) return half_to_float(raw.scale >> 16) * (float)(raw.scale2 >> 6);
  return 0.f;
}
template <int T>
__host__ __device__ constexpr bool has_minimum() {
  return T == Q4_1 || T == Q5_1 || T == Q4_K || T == Q5_K;
}

// Elements 4g..4g+3 of a block in float32.
template <int T>
INLINE float4 dequantize4(const RawBlock& raw, int g) {
  const u32 c = block_codes<T>(raw, g);
  const float s = block_scale<T>(raw, g >> 2), m = block_minimum<T>(raw), center = code_center<T>();
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    v[i] = __fmul_rn((float)((c >> (8 * i)) & 255) - center, s);
    if (has_minimum<T>()) v[i] = __fadd_rn(v[i], -m);
  }
  return make_float4(v[0], v[1], v[2], v[3]);
}

// All 32 elements as halves, in order.
template <int T>
INLINE void dequantize_half(const RawBlock& raw, u32* out) {
  const u32 base = half2_of(float_to_half(1024.f + code_center<T>()));
  u32 minimum = 0;
  if (has_minimum<T>()) minimum = half2_of(float_to_half(-block_minimum<T>(raw)));
#pragma unroll
  for (int g = 0; g < 8; g++) {
    const u32 scale = half2_of(float_to_half(block_scale<T>(raw, g >> 2)));
    const u32 c = block_codes<T>(raw, g);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const u32 q = half2_sub(permute(c, 0x64646464u, i ? 0x4342 : 0x4140), base);
      out[2 * g + i] = has_minimum<T>() ? half2_fma(q, scale, minimum) : half2_mul(q, scale);
    }
  }
}
