// A row of K activations staged in shared memory for dot products with packed weights: two int8 planes
// (x = scale · (256·high + low), 16 bits) with one scale a block of 32, or floats for float weights.
//   plane: elements 0..15 of every block, then elements 16..31 of every block
//   meta:  per block (scale, scale·Σ first half, scale·Σ second half, scale·Σ)
#pragma once
#include "tile.cuh"

template <bool FLOATS>
__host__ __device__ constexpr int activation_bytes(int k) {
  return FLOATS ? 4 * k : 2 * k + k / 2;
}

// Quantize elements 4t..4t+3; the eight threads of a block of 32 must call it together.
template <int K>
INLINE void stage_quantized(u8* staged, int t, bool valid, float4 v) {
  constexpr int BLOCKS = K / 32;
  float m = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
#pragma unroll
  for (int o = 1; o <= 4; o <<= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
  const float inverse = m > 0.f ? __fdividef(32512.f, m) : 0.f, scale = m * (1.f / 32512.f);
  const int q0 = __float2int_rn(v.x * inverse), q1 = __float2int_rn(v.y * inverse);
  const int q2 = __float2int_rn(v.z * inverse), q3 = __float2int_rn(v.w * inverse);
  int sum = q0 + q1 + q2 + q3;
  sum += __shfl_xor_sync(~0u, sum, 1);
  sum += __shfl_xor_sync(~0u, sum, 2);
  const int other = __shfl_xor_sync(~0u, sum, 4);
  if (!valid) return;
  const int group = t & 7, block = t >> 3;
  const u32 at = (group >> 2) * BLOCKS * 16 + block * 16 + (group & 3) * 4;
  const int h0 = (q0 + 128) >> 8, h1 = (q1 + 128) >> 8, h2 = (q2 + 128) >> 8, h3 = (q3 + 128) >> 8;
  *(u32*)(staged + at) = (h0 & 255) | (h1 & 255) << 8 | (h2 & 255) << 16 | (u32)h3 << 24;
  *(u32*)(staged + K + at) = ((q0 - 256 * h0) & 255) | ((q1 - 256 * h1) & 255) << 8 | ((q2 - 256 * h2) & 255) << 16 | (u32)(q3 - 256 * h3) << 24;
  if (group == 0) ((float4*)(staged + 2 * K))[block] = make_float4(scale, scale * sum, scale * other, scale * (sum + other));
}

INLINE float join_planes(int high, int low) { return (float)(high * 256 + low); }
INLINE int dot16(const uint4& w, const uint4& a) { return __dp4a((int)w.x, (int)a.x, __dp4a((int)w.y, (int)a.y, __dp4a((int)w.z, (int)a.z, __dp4a((int)w.w, (int)a.w, 0)))); }

// acc[r] += dot of row r of the tile with the staged activation, this lane's share: chunks lane, lane + 32, …
template <int T, int K, int R>
INLINE void dot_Q8_0(const u8* tile, const u8* staged, float* acc) {
  constexpr int BLOCKS = K / 32, CHUNKS = 2 * BLOCKS;
  const int lane = threadIdx.x & 31;
  const float4* meta = (const float4*)(staged + 2 * K);
#pragma unroll
  for (int i = 0; i < (CHUNKS + 31) / 32; i++) {
    const int c = i * 32 + lane;
    if (c < CHUNKS) {
      const int block = c < BLOCKS ? c : c - BLOCKS;
      const uint4 high = *(const uint4*)(staged + c * 16), low = *(const uint4*)(staged + K + c * 16);
      const float scale = meta[block].x;
#pragma unroll
      for (int r = 0; r < R; r++) {
        const uint4 w = *(const uint4*)(tile + r * K + c * 16);
        const float d = half_to_float(*(const u16*)(tile + R * K + (r * BLOCKS + block) * 2));
        acc[r] += d * scale * join_planes(dot16(w, high), dot16(w, low));
      }
    }
  }
}

// Scale and correction of one block: returns what to add, given the code dot products of its halves.
template <int T, int K, int R>
INLINE float scaled_block(const u8* tile, int r, int block, float4 meta, float first, float second) {
  constexpr int BLOCKS = K / 32;
  const u8* scales = tile + R * (quant_bytes(T, K) + high_bytes(T, K)) + r * scale_bytes(T, K);
  const float sum = meta.x * (first + second);
  if (T == MXFP4) return __uint_as_float((max((u32)scales[block], 1u) - 1) << 23) * (sum - 12.f * meta.w);
  if (T == Q4_0 || T == Q5_0) return half_to_float(((const u16*)scales)[block]) * (sum - (T == Q4_0 ? 8.f : 16.f) * meta.w);
  if (T == Q4_1 || T == Q5_1) {
    const u32 dm = ((const u32*)scales)[block];
    return half_to_float(dm & 0xffff) * sum + half_to_float(dm >> 16) * meta.w;
  }
  if (T == Q6_K) {
    const u32 s = ((const u16*)scales)[block];
    const float d = half_to_float(*(const u16*)(tile + R * (quant_bytes(T, K) + high_bytes(T, K) + scale_bytes(T, K)) + (r * (BLOCKS / 8) + (block >> 3)) * 2));
    return d * ((float)(signed char)(s & 255) * (meta.x * first - 32.f * meta.y) + (float)(signed char)(s >> 8) * (meta.x * second - 32.f * meta.z));
  }
  const u8* record = scales + (block >> 3) * 16;  // Q4_K, Q5_K
  const int j = block & 7;
  const u32 d = *(const u32*)record, v = record[4 + j] | ((record[12 + (j >> 1)] >> (4 * (j & 1))) & 15u) << 8;
  return half_to_float(d & 0xffff) * (float)(v & 63) * sum - half_to_float(d >> 16) * (float)(v >> 6) * meta.w;
}

template <int T, int K, int R>
INLINE void dot_nibbles(const u8* tile, const u8* staged, float* acc) {
  constexpr int BLOCKS = K / 32;
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < (BLOCKS + 31) / 32; i++) {
    const int block = i * 32 + lane;
    if (block < BLOCKS) {
      u32 high[8], low[8];
      *(uint4*)high = *(const uint4*)(staged + block * 16);
      *(uint4*)(high + 4) = *(const uint4*)(staged + BLOCKS * 16 + block * 16);
      *(uint4*)low = *(const uint4*)(staged + K + block * 16);
      *(uint4*)(low + 4) = *(const uint4*)(staged + K + BLOCKS * 16 + block * 16);
      const float4 meta = ((const float4*)(staged + 2 * K))[block];
#pragma unroll
      for (int r = 0; r < R; r++) {
        const uint4 quants = *(const uint4*)(tile + r * (K / 2) + block * 16);
        uint2 bits = make_uint2(0, 0);
        const u8* extra = tile + R * (K / 2) + r * high_bytes(T, K) + block * high_bytes(T, 32);
        if (has_fifth_bit(T)) bits.x = *(const u32*)extra;
        if (T == Q6_K) bits = *(const uint2*)extra;
        int dot_high[2] = {0, 0}, dot_low[2] = {0, 0};
#pragma unroll
        for (int g = 0; g < 8; g++) {
          const u32 w = word(quants, g >> 1);
          const u32 c = T == MXFP4 ? mxfp4_codes(g & 1 ? w >> 16 : w) : codes<T>(w, bits, g);
          const int h = T == Q6_K ? g >> 2 : 0;
          dot_high[h] = dot4_unsigned(c, (int)high[g], dot_high[h]);
          dot_low[h] = dot4_unsigned(c, (int)low[g], dot_low[h]);
        }
        acc[r] += scaled_block<T, K, R>(tile, r, block, meta, join_planes(dot_high[0], dot_low[0]), T == Q6_K ? join_planes(dot_high[1], dot_low[1]) : 0.f);
      }
    }
  }
}

template <int T, int K, int R>
INLINE void dot_floats(const u8* tile, const u8* staged, float* acc) {
  constexpr int PER = T == F32 ? 4 : 8, CHUNKS = K / PER;
  const int lane = threadIdx.x & 31;
  const float4* x = (const float4*)staged;
  for (int c = lane; c < CHUNKS; c += 32)
#pragma unroll
    for (int r = 0; r < R; r++) {
      const uint4 w = *(const uint4*)(tile + (r * CHUNKS + c) * 16);
      if (T == F32) {
        const float4 a = x[c];
        acc[r] += __uint_as_float(w.x) * a.x + __uint_as_float(w.y) * a.y + __uint_as_float(w.z) * a.z + __uint_as_float(w.w) * a.w;
      } else {
        const u32 v[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float low = T == F16 ? half_to_float(v[j] & 0xffff) : bfloat_to_float(v[j] & 0xffff);
          const float high = T == F16 ? half_to_float(v[j] >> 16) : bfloat_to_float(v[j] >> 16);
          const float2 a = ((const float2*)staged)[c * 4 + j];
          acc[r] += low * a.x + high * a.y;
        }
      }
    }
}

template <int T, int K, int R>
INLINE void dot_tile(const u8* tile, const u8* staged, float* acc) {
#pragma unroll
  for (int r = 0; r < R; r++) acc[r] = 0;
  if constexpr (is_float_type(T)) dot_floats<T, K, R>(tile, staged, acc);
  else if constexpr (T == Q8_0) dot_Q8_0<T, K, R>(tile, staged, acc);
  else dot_nibbles<T, K, R>(tile, staged, acc);
}

// Sum R values over the lanes at once: lane l ends with the sum of value tile_row<R>(l).
template <int R>
INLINE float lane_sum(float* a) {
  int o = 16;
#pragma unroll
  for (int n = R; n > 1; n >>= 1) {
    const bool upper = threadIdx.x & o;
#pragma unroll
    for (int j = 0; j < n / 2; j++) {
      const float keep = upper ? a[2 * j + 1] : a[2 * j], give = upper ? a[2 * j] : a[2 * j + 1];
      a[j] = keep + __shfl_xor_sync(~0u, give, o);
    }
    o >>= 1;
  }
  float v = a[0];
  for (; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  return v;
}
template <int R>
INLINE int tile_row(int lane) {
  return R == 1 ? 0 : R == 2 ? lane >> 4 : (lane >> 4) | (lane >> 3 & 1) << 1;
}
template <int R>
INLINE int row_lane(int r) {
  return R == 1 ? 0 : R == 2 ? r << 4 : (r & 1) << 4 | (r >> 1 & 1) << 3;
}
