// KV cache pages: 64 positions of every layer. Inside a page: layer, then keys before values, then
// kv head, then [64][head_dim] halves, so that one head's page is one contiguous tile.
#pragma once
#include "split.cuh"

constexpr int PAGE = 64;

struct KvCache {
  const u64* pages;    // address of the page of positions 64i..64i+63 of this sequence
  u64 layer_offset;
  int n_kv_heads, head_dim;
};

INLINE u16* kv_tile(const KvCache& c, int position, int value, int head) {
  return (u16*)(__ldcg(c.pages + position / PAGE) + c.layer_offset) + (u64)(value * c.n_kv_heads + head) * PAGE * c.head_dim;
}

enum { NO_ROPE, ADJACENT, HALF };

// Element d of a head after RoPE; row points at the head's head_dim floats; table[i] = (cos, sin) of pair i.
template <int PAIRS>
INLINE float rotated(const float* row, int d, const float2* table, int n_pairs) {
  const float x = __ldcg(row + d);
  if (PAIRS == NO_ROPE || d >= 2 * n_pairs) return x;
  const bool first = PAIRS == ADJACENT ? !(d & 1) : d < n_pairs;
  const int pair = PAIRS == ADJACENT ? d >> 1 : first ? d : d - n_pairs;
  const float other = __ldcg(row + (PAIRS == ADJACENT ? d ^ 1 : first ? d + n_pairs : d - n_pairs));
  const float2 cs = __ldg(table + pair);
  return first ? x * cs.x - other * cs.y : x * cs.x + other * cs.y;
}
