// Packed weights: a tile is TILE_ROWS rows of one matrix, part after part: quants of all its rows,
// then their fifth or sixth bits, then their scales; padded to 16 bytes. Blocks of 32 weights:
//   quants  nibble types: 16 bytes, 32-bit word j = elements 8j..8j+3 low nibbles, 8j+4..8j+7 high;
//           MXFP4: nibbles in order; Q8_0: first 16 bytes of every block of the row, then the second
//           16 of every block; F32, F16, BF16: the values in order.
//   high    Q5: 4 bytes, bit 8·(i%4) + i/4 is element i's; Q6_K: 8 bytes, half h of the block in word
//           h, byte i%4, bit pair (i%16)/4.
//   scales  Q4_0, Q5_0, Q8_0: d; Q4_1, Q5_1: d, m; MXFP4: e; Q4_K, Q5_K: 16 bytes for 256 weights, d,
//           dmin, eight low bytes and four nibble pairs of c | n << 6; Q6_K: 16 int8 scales for 256
//           weights in their own part, then d.
#pragma once
#include "device.cuh"

enum { F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, MXFP4 };

__host__ __device__ constexpr bool is_float_type(int t) { return t <= BF16; }
__host__ __device__ constexpr bool has_fifth_bit(int t) { return t == Q5_0 || t == Q5_1 || t == Q5_K; }
// bytes of each part of one row of k weights
__host__ __device__ constexpr int quant_bytes(int t, int k) { return t == F32 ? 4 * k : t == F16 || t == BF16 ? 2 * k : t == Q8_0 ? k : k / 2; }
__host__ __device__ constexpr int high_bytes(int t, int k) { return has_fifth_bit(t) ? k / 8 : t == Q6_K ? k / 4 : 0; }
__host__ __device__ constexpr int scale_bytes(int t, int k) {
  return is_float_type(t) ? 0 : t == Q4_1 || t == Q5_1 ? k / 8 : t == MXFP4 ? k / 32 : t == Q4_K || t == Q5_K || t == Q6_K ? k / 16 : k / 16;
}
__host__ __device__ constexpr int super_bytes(int t, int k) { return t == Q6_K ? k / 128 : 0; }
__host__ __device__ constexpr int tile_bytes(int t, int rows, int k) {
  return (rows * (quant_bytes(t, k) + high_bytes(t, k) + scale_bytes(t, k) + super_bytes(t, k)) + 15) / 16 * 16;
}

// Distance between the quants of neighbouring blocks of a row.
__host__ __device__ constexpr int block_stride(int t) { return t == Q8_0 ? 16 : quant_bytes(t, 32); }

// One block of 32 weights as it lies in the tile.
struct RawBlock {
  uint4 quants, more;
  uint2 high;
  u32 scale, scale2;
};

// How a block is read: from global memory, each 16 bytes fetching the 128 around them into L2 (the next
// steps read the same rows further on), or from a tile in shared memory.
struct GlobalReader {
  INLINE static uint4 load16(const u8* p) {
    uint4 v;
    asm volatile("ld.global.nc.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
  }
  template <class V>
  INLINE static V load(const u8* p) {
    return __ldg((const V*)p);
  }
};
struct SharedReader {
  INLINE static uint4 load16(const u8* p) { return *(const uint4*)p; }
  template <class V>
  INLINE static V load(const u8* p) {
    return *(const V*)p;
  }
};

template <int T, class R = GlobalReader>
INLINE RawBlock load_block(const u8* tile, int tile_rows, int k, int row, int block) {
  RawBlock raw;
  const u8* quants = tile + row * quant_bytes(T, k) + block * block_stride(T);
  raw.quants = R::load16(quants);
  if (T == Q8_0) raw.more = R::load16(quants + k / 2);
  const u8* high = tile + tile_rows * quant_bytes(T, k) + row * high_bytes(T, k) + block * high_bytes(T, 32);
  if (has_fifth_bit(T)) raw.high.x = R::template load<u32>(high);
  if (T == Q6_K) raw.high = R::template load<uint2>(high);
  const u8* scales = tile + tile_rows * (quant_bytes(T, k) + high_bytes(T, k)) + row * scale_bytes(T, k);
  if (T == Q4_0 || T == Q5_0 || T == Q8_0) raw.scale = R::template load<u16>(scales + 2 * block);
  if (T == Q4_1 || T == Q5_1) raw.scale = R::template load<u32>(scales + 4 * block);
  if (T == MXFP4) raw.scale = R::template load<u8>(scales + block);
  if (T == Q4_K || T == Q5_K) {
    const u8* record = scales + (block >> 3) * 16;
    const int j = block & 7;
    raw.scale = R::template load<u32>(record);
    raw.scale2 = R::template load<u8>(record + 4 + j) | ((R::template load<u8>(record + 12 + (j >> 1)) >> (4 * (j & 1))) & 15u) << 8;
  }
  if (T == Q6_K) {
    raw.scale = R::template load<u16>(scales + 2 * block);
    raw.scale2 = R::template load<u16>(tile + tile_rows * (quant_bytes(T, k) + high_bytes(T, k) + scale_bytes(T, k)) + row * super_bytes(T, k) + 2 * (block >> 3));
  }
  return raw;
}

INLINE u32 word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Codes of elements 4g..4g+3 of a block, one a byte (g = 0..7, known at compile time).
template <int T>
INLINE u32 codes(u32 quants, uint2 high, int g) {
  u32 v = (g & 1 ? quants >> 4 : quants) & 0x0f0f0f0fu;
  if (has_fifth_bit(T)) v |= (g < 4 ? high.x << (4 - g) : high.x >> (g - 4)) & 0x10101010u;
  if (T == Q6_K) {
    const u32 h = g < 4 ? high.x : high.y;
    const int pair = g & 3;
    v |= (pair == 0 ? h << 4 : pair == 1 ? h << 2 : pair == 2 ? h : h >> 2) & 0x30303030u;
  }
  return v;
}
// E2M1 values times two plus twelve, one a byte, of the four nibbles in the low 16 bits of x.
INLINE u32 mxfp4_codes(u32 x) {
  return permute(0x0f0e0d0cu, 0x18141210u, x) | permute(0x090a0b0cu, 0x00040608u, x ^ 0x88888888u);
}
