// KV cache pages: 64 positions of every layer. Inside a page: layer, then keys before values, then
// kv head, then [64][head_dim] halves, so that one head's page is one contiguous tile. The 16-byte chunks of a
// row are permuted (kv_chunk), so that a tile copied as it is can be read by ldmatrix without bank conflicts.
#pragma once
#include "split.cuh"

constexpr int PAGE = 64;

struct KvCache {
  const u64* pages;    // address of the page of positions 64i..64i+63 of this sequence
  u64 layer_offset;
  int n_kv_heads, head_dim;
};

INLINE u16* kv_tile(const KvCache& c, u64 page, int value, int head) {
  return (u16*)(page + c.layer_offset) + (u64)(value * c.n_kv_heads + head) * PAGE * c.head_dim;
}
// Place of 16-byte chunk c in its row: eight rows' equal chunks lie in eight different banks of 16 bytes.
INLINE int kv_chunk(int head_dim, int row, int c) {
  const int bits = head_dim % 64 == 0 ? 3 : head_dim % 32 == 0 ? 2 : 1;
  return c ^ (row >> (3 - bits) & ((1 << bits) - 1));
}
// Place of element d of a row in a tile of [64][head_dim].
INLINE int kv_place(int head_dim, int row, int d) { return row * head_dim + kv_chunk(head_dim, row, d >> 3) * 8 + (d & 7); }
INLINE u16* kv_tile(const KvCache& c, int position, int value, int head) { return kv_tile(c, __ldcg(c.pages + position / PAGE), value, head); }

// Keys and values that the next attention will read: a kernel with the memory idle brings them to L2.
struct KvAhead {
  KvCache cache;
  const int* position;   // null: nothing to bring
  int window, most_chunks;
};
constexpr u32 AHEAD_BYTES = 4096;  // divides a layer's part of any page

// One warp of each block asks for the block's chunks, in all three quarters of what the position sees.
INLINE void bring_ahead(const KvAhead& a) {
#if HAS_BULK_COPY
  const int position = __ldcg(a.position), first_page = first_page_key(position, a.window) / PAGE;
  const u32 page_chunks = 4 * a.cache.n_kv_heads * PAGE * a.cache.head_dim / AHEAD_BYTES;
  const u32 end = min((u32)(position / PAGE + 1 - first_page) * page_chunks, (u32)a.most_chunks) * 3 / 4;
  for (u32 i = blockIdx.x + gridDim.x * (threadIdx.x & 31); i < end; i += gridDim.x * 32) {
    const u64 from = __ldcg(a.cache.pages + first_page + i / page_chunks) + a.cache.layer_offset + i % page_chunks * AHEAD_BYTES;
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(AHEAD_BYTES) : "memory");
  }
#endif
}

enum { NO_ROPE, ADJACENT, HALF };

// Element d of a head and the one that RoPE turns with it; row points at the head's head_dim floats.
template <int PAIRS>
INLINE float2 rope_pair(const float* row, int d, int n_pairs) {
  const int other = PAIRS == NO_ROPE || d >= 2 * n_pairs ? d : PAIRS == ADJACENT ? d ^ 1 : d < n_pairs ? d + n_pairs : d - n_pairs;
  return make_float2(__ldcg(row + d), __ldcg(row + other));
}
// Element d after RoPE; table[i] = (cos, sin) of pair i.
template <int PAIRS>
INLINE float rotated(float2 v, int d, const float2* table, int n_pairs) {
  if (PAIRS == NO_ROPE || d >= 2 * n_pairs) return v.x;
  const bool first = PAIRS == ADJACENT ? !(d & 1) : d < n_pairs;
  const float2 cs = table[PAIRS == ADJACENT ? d >> 1 : first ? d : d - n_pairs];
  return first ? v.x * cs.x - v.y * cs.y : v.x * cs.x + v.y * cs.y;
}
template <int PAIRS>
INLINE float rotated(const float* row, int d, const float2* table, int n_pairs) { return rotated<PAIRS>(rope_pair<PAIRS>(row, d, n_pairs), d, table, n_pairs); }
