// rope_table:  table[p][i] = (cos, sin)(p · inverse_frequency[i]) · magnitude, angles in float64. A thread
//              an entry.
// rope_append: rotate q into halves, rotate k and copy v into the KV cache pages, for a whole chunk.
//              A block a token, threads over the elements of q, k and v.
#include "kv_page.cuh"

struct RopeTableArgs {
  const double* inverse_frequencies;
  float2* table;
  int positions, n_pairs;
  float magnitude;
};

ENTRY rope_table(const __grid_constant__ RopeTableArgs a) {
  const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= (u64)a.positions * a.n_pairs) return;
  double s, c;
  sincos((double)(at / a.n_pairs) * a.inverse_frequencies[at % a.n_pairs], &s, &c);
  a.table[at] = make_float2((float)(c * a.magnitude), (float)(s * a.magnitude));
}

struct RopeAppendArgs {
  const float* q;
  const float* k;
  const float* v;
  u16* q_out;            // [tokens, n_heads · head_dim]
  const float2* table;
  const int* position;   // of the first token
  KvCache cache;
  int q_stride, k_stride, v_stride, n_heads, n_pairs;
};

template <int PAIRS>
INLINE void rope_append(const RopeAppendArgs& a) {
  const int t = blockIdx.x, hd = a.cache.head_dim, position = __ldcg(a.position) + t;
  const float2* table = a.table + (u64)position * a.n_pairs;
  const float* q = a.q + (u64)t * a.q_stride;
  for (int i = threadIdx.x; i < a.n_heads * hd; i += blockDim.x)
    a.q_out[(u64)t * a.n_heads * hd + i] = float_to_half(rotated<PAIRS>(q + i / hd * hd, i % hd, table, a.n_pairs));
  for (int i = threadIdx.x; i < a.cache.n_kv_heads * hd; i += blockDim.x) {
    const int head = i / hd, d = i % hd, at = kv_place(hd, position % PAGE, d);
    kv_tile(a.cache, position, 0, head)[at] = float_to_half(rotated<PAIRS>(a.k + (u64)t * a.k_stride + head * hd, d, table, a.n_pairs));
    kv_tile(a.cache, position, 1, head)[at] = float_to_half(__ldcg(a.v + (u64)t * a.v_stride + i));
  }
}

ENTRY rope_append_none(const __grid_constant__ RopeAppendArgs a) { rope_append<NO_ROPE>(a); }
ENTRY rope_append_adjacent(const __grid_constant__ RopeAppendArgs a) { rope_append<ADJACENT>(a); }
ENTRY rope_append_half(const __grid_constant__ RopeAppendArgs a) { rope_append<HALF>(a); }
