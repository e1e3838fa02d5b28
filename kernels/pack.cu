// Repack: rows of GGUF blocks -> tiles (tile.cuh). Lossless; the block formats are the GGUF ones.
//   packed row of source row r: r · row_stride + row_offset, so that gate and up rows can alternate.
// One thread moves one block of 32 weights. Grid: x over the blocks of all rows of the chunk.
#include "tile.cuh"

struct PackArgs {
  const u8* source;
  u8* tiles;
  int rows, first_row, k, row_bytes, tile_rows, row_stride, row_offset, padded_k;
};

INLINE u32 read16(const u8* p) { return p[0] | p[1] << 8; }
INLINE u32 read32(const u8* p) { return read16(p) | read16(p + 2) << 16; }

// Fields of one source block of 32: codes without bias, fifth or sixth bits included.
template <int T>
INLINE u32 source_code(const u8* row, int block, int i) {
  if (T == Q8_0) return row[block * 34 + 2 + i];
  if (T == Q4_0 || T == Q4_1 || T == MXFP4) {
    const u8* q = row + (T == Q4_0 ? block * 18 + 2 : T == Q4_1 ? block * 20 + 4 : block * 17 + 1);
    return i < 16 ? q[i] & 15 : q[i - 16] >> 4;
  }
  if (T == Q5_0 || T == Q5_1) {
    const u8* b = row + (T == Q5_0 ? block * 22 + 2 : block * 24 + 4);
    const u32 low = i < 16 ? b[4 + i] & 15 : b[4 + i - 16] >> 4;
    return low | (read32(b) >> i & 1) << 4;
  }
  const int part = block & 7;
  if (T == Q4_K || T == Q5_K) {
    const u8* b = row + (block >> 3) * (T == Q4_K ? 144 : 176);
    const u8 q = b[(T == Q4_K ? 16 : 48) + 32 * (part >> 1) + i];
    const u32 low = part & 1 ? q >> 4 : q & 15;
    return T == Q4_K ? low : low | (b[16 + i] >> part & 1) << 4;
  }
  const u8* b = row + (block >> 3) * 210 + (part >> 2) * 64;  // Q6_K: a half is 128 weights, a part 32
  const u8* h = row + (block >> 3) * 210 + 128 + (part >> 2) * 32;
  const u8 q = b[(part & 1) * 32 + i];
  return ((part & 2) ? q >> 4 : q & 15) | (h[i] >> (2 * (part & 3)) & 3) << 4;
}

template <int T>
INLINE void write_quants(const u8* row, int block, int k, u8* quants, u8* high) {
  if (T == Q8_0) {
    for (int i = 0; i < 32; i++) quants[(i / 16) * (k / 2) + i % 16] = (u8)source_code<T>(row, block, i);
    return;
  }
  u32 h[2] = {0, 0};
  for (int j = 0; j < 4; j++) {
    u32 w = 0;
    for (int i = 0; i < 8; i++) {
      const int e = 8 * j + i;
      const u32 c = source_code<T>(row, block, e);
      w |= (c & 15) << (T == MXFP4 ? 4 * i : 8 * (i & 3) + 4 * (i >> 2));
      if (has_fifth_bit(T)) h[0] |= (c >> 4) << (8 * (e % 4) + e / 4);
      if (T == Q6_K) h[e / 16] |= (c >> 4) << (8 * (e % 4) + 2 * (e % 16 / 4));
    }
    ((u32*)quants)[j] = w;
  }
  if (has_fifth_bit(T)) *(u32*)high = h[0];
  if (T == Q6_K) *(uint2*)high = make_uint2(h[0], h[1]);
}

template <int T>
INLINE void write_k_record(const u8* source, int j, u8* record) {
  const u8* s = source + 4;
  const u32 c = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
  const u32 n = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | (s[j] >> 6) << 4;
  const u32 v = c | n << 6;
  record[4 + j] = (u8)v;
  if (j == 0) *(u32*)record = read32(source);
  // a byte holds the high nibbles of two sub-blocks: the even one writes both
  if (!(j & 1)) {
    const int o = j + 1;
    const u32 c1 = o < 4 ? s[o] & 63 : (s[o + 4] & 15) | (s[o - 4] >> 6) << 4;
    const u32 n1 = o < 4 ? s[o + 4] & 63 : (s[o + 4] >> 4) | (s[o] >> 6) << 4;
    record[12 + (j >> 1)] = (u8)((v >> 8) | ((c1 | n1 << 6) >> 8) << 4);
  }
}

template <int T>
INLINE void write_scales(const u8* row, int block, u8* scales, u8* supers) {
  if (T == Q4_0 || T == Q5_0 || T == Q8_0) ((u16*)scales)[block] = (u16)read16(row + block * (T == Q4_0 ? 18 : T == Q5_0 ? 22 : 34));
  if (T == Q4_1 || T == Q5_1) ((u32*)scales)[block] = read32(row + block * (T == Q4_1 ? 20 : 24));
  if (T == MXFP4) scales[block] = row[block * 17];
  if (T == Q4_K || T == Q5_K) write_k_record<T>(row + (block >> 3) * (T == Q4_K ? 144 : 176), block & 7, scales + (block >> 3) * 16);
  if (T == Q6_K) {
    const u8* b = row + (block >> 3) * 210;
    ((u16*)scales)[block] = (u16)read16(b + 192 + 2 * (block & 7));
    if (!(block & 7)) ((u16*)supers)[block >> 3] = (u16)read16(b + 208);
  }
}

template <int T>
INLINE void copy_floats(const u8* row, int block, int k, u8* quants) {
  const int size = T == F32 ? 4 : 2;
  for (int i = 0; i < 32; i++)
    for (int b = 0; b < size; b++) quants[i * size + b] = block * 32 + i < k ? row[(block * 32 + i) * size + b] : 0;
}

template <int T>
INLINE void pack(const PackArgs& a) {
  const int blocks = a.padded_k / 32;
  const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= (u64)blocks * a.rows) return;
  const int r = (int)(at / blocks), block = (int)(at % blocks), k = a.padded_k;
  const u8* row = a.source + (u64)r * a.row_bytes;
  const int packed = (a.first_row + r) * a.row_stride + a.row_offset, slot = packed % a.tile_rows;
  u8* tile = a.tiles + (u64)(packed / a.tile_rows) * tile_bytes(T, a.tile_rows, k);
  u8* quants = tile + slot * quant_bytes(T, k) + block * block_stride(T);
  if (is_float_type(T)) {
    copy_floats<T>(row, block, a.k, quants);
    return;
  }
  u8* high = tile + a.tile_rows * quant_bytes(T, k);
  u8* scales = high + a.tile_rows * high_bytes(T, k);
  u8* supers = scales + a.tile_rows * scale_bytes(T, k);
  write_quants<T>(row, block, k, quants, high + slot * high_bytes(T, k) + block * high_bytes(T, 32));
  write_scales<T>(row, block, scales + slot * scale_bytes(T, k), supers + slot * super_bytes(T, k));
}

ENTRY pack_F32(const __grid_constant__ PackArgs a) { pack<F32>(a); }
ENTRY pack_F16(const __grid_constant__ PackArgs a) { pack<F16>(a); }
ENTRY pack_BF16(const __grid_constant__ PackArgs a) { pack<BF16>(a); }
ENTRY pack_Q4_0(const __grid_constant__ PackArgs a) { pack<Q4_0>(a); }
ENTRY pack_Q4_1(const __grid_constant__ PackArgs a) { pack<Q4_1>(a); }
ENTRY pack_Q5_0(const __grid_constant__ PackArgs a) { pack<Q5_0>(a); }
ENTRY pack_Q5_1(const __grid_constant__ PackArgs a) { pack<Q5_1>(a); }
ENTRY pack_Q8_0(const __grid_constant__ PackArgs a) { pack<Q8_0>(a); }
ENTRY pack_Q4_K(const __grid_constant__ PackArgs a) { pack<Q4_K>(a); }
ENTRY pack_Q5_K(const __grid_constant__ PackArgs a) { pack<Q5_K>(a); }
ENTRY pack_Q6_K(const __grid_constant__ PackArgs a) { pack<Q6_K>(a); }
ENTRY pack_MXFP4(const __grid_constant__ PackArgs a) { pack<MXFP4>(a); }
