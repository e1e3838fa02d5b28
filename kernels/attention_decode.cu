// Attention of one token over the paged KV cache, split over keys (flash decoding):
//   for each split: o = Σ exp(s - m)·v, m = max s, l = Σ exp(s - m), s = scale · q·k
// The split length is a function of the position alone, so the result is too. RoPE of q and k and the
// append to the cache happen here. attention_merge joins the splits:  out = Σ o·e^(m-M) / Σ l·e^(m-M).
// Block: one kv head's group of HEADS query heads (y) and one split (x); 256 threads; 64 keys a step:
// four threads a key for the scores, a warp for eight keys for the values.
#include "kv_page.cuh"

struct AttentionDecodeArgs {
  const float* q;
  const float* k;
  const float* v;
  float* out;             // [n_heads, max_splits, head_dim]
  float2* sums;           // [n_heads, max_splits] (m, l)
  const float2* table;    // RoPE
  const int* position;
  KvCache cache;
  int n_pairs, window, split_keys, max_splits, groups;   // groups: blocks a kv head
  float scale;
};

template <int HD, int HEADS, int PAIRS>
INLINE void attention_decode(const AttentionDecodeArgs& a) {
  constexpr int STRIDE = HD + 8, VECTORS = HD / 8, COLUMNS = (HD + 63) / 64;
  constexpr int TILE = PAGE * STRIDE, SUM_BYTES = 8 * HEADS * HD * 4, TILES_BYTES = 2 * TILE * 2;
  __shared__ __align__(16) u8 space[SUM_BYTES > TILES_BYTES ? SUM_BYTES : TILES_BYTES];
  __shared__ __align__(16) float q[HEADS][HD];
  __shared__ float p[HEADS][PAGE], alpha[HEADS], running_max[HEADS], running_sum[HEADS];
  u16* keys = (u16*)space;
  u16* values = keys + TILE;
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31;
  const int kv_head = blockIdx.y / a.groups, first_head = blockIdx.y * HEADS;
  const int position = __ldcg(a.position), begin = first_page_key(position, a.window) + blockIdx.x * a.split_keys;
  const int end = min(begin + a.split_keys, position + 1);  // keys [begin, end)
  const bool newest = end == position + 1;
  if (begin > position) {
    wait_for_previous_kernel();
    release_next_kernel();
    return;
  }
  auto fetch = [&](int key) {
    const u16* from_k = kv_tile(a.cache, key, 0, kv_head);
    const u16* from_v = kv_tile(a.cache, key, 1, kv_head);
    for (int i = thread; i < PAGE * VECTORS; i += 256) {
      const int row = i / VECTORS, c = i % VECTORS;
      const bool valid = key + row < position;
      copy16(keys + row * STRIDE + c * 8, from_k + row * HD + c * 8, valid);
      copy16(values + row * STRIDE + c * 8, from_v + row * HD + c * 8, valid);
    }
    copy_commit();
  };
  fetch(begin);  // keys before this token are complete since the last one
  const float2* table = a.table + (u64)position * a.n_pairs;
  wait_for_previous_kernel();
  release_next_kernel();
  for (int i = thread; i < HEADS * HD; i += 256) q[i / HD][i % HD] = rotated<PAIRS>(a.q + (first_head + i / HD) * HD, i % HD, table, a.n_pairs) * a.scale;
  u16 new_k = 0, new_v = 0;
  if (newest && thread < HD) {
    new_k = float_to_half(rotated<PAIRS>(a.k + kv_head * HD, thread, table, a.n_pairs));
    new_v = float_to_half(__ldcg(a.v + kv_head * HD + thread));
    if (blockIdx.y % a.groups == 0) {
      kv_tile(a.cache, position, 0, kv_head)[position % PAGE * HD + thread] = new_k;
      kv_tile(a.cache, position, 1, kv_head)[position % PAGE * HD + thread] = new_v;
    }
  }
  if (thread < HEADS) running_max[thread] = NEGATIVE_INFINITY, running_sum[thread] = 0;
  float2 acc[HEADS][COLUMNS];
#pragma unroll
  for (int h = 0; h < HEADS; h++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) acc[h][c] = make_float2(0, 0);

  for (int base = begin; base < end; base += PAGE) {
    copy_wait<0>();
    __syncthreads();
    if (newest && base + PAGE > position && thread < HD) {
      keys[position % PAGE * STRIDE + thread] = new_k;
      values[position % PAGE * STRIDE + thread] = new_v;
    }
    if (newest && base + PAGE > position) __syncthreads();
    const int key = thread >> 2, sub = thread & 3, at = base + key;
    float score[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) score[h] = 0;
    for (int c = sub; c < VECTORS; c += 4) {
      const uint4 packed = *(const uint4*)(keys + key * STRIDE + c * 8);
      const float2 k0 = half2_to_floats(packed.x), k1 = half2_to_floats(packed.y), k2 = half2_to_floats(packed.z), k3 = half2_to_floats(packed.w);
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
        const float4 q0 = *(const float4*)&q[h][c * 8], q1 = *(const float4*)&q[h][c * 8 + 4];
        score[h] += k0.x * q0.x + k0.y * q0.y + k1.x * q0.z + k1.y * q0.w + k2.x * q1.x + k2.y * q1.y + k3.x * q1.z + k3.y * q1.w;
      }
    }
    const bool visible = at < end && (a.window <= 0 || at > position - a.window);
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      score[h] += __shfl_xor_sync(~0u, score[h], 1);
      score[h] += __shfl_xor_sync(~0u, score[h], 2);
      if (sub == 0) p[h][key] = visible ? score[h] : NEGATIVE_INFINITY;
    }
    __syncthreads();
    for (int h = warp; h < HEADS; h += 8) {
      const float s0 = p[h][lane], s1 = p[h][lane + 32], before = running_max[h];
      const float best = fmaxf(before, warp_max(fmaxf(s0, s1)));
      const float e0 = s0 > NEGATIVE_INFINITY ? __expf(s0 - best) : 0.f, e1 = s1 > NEGATIVE_INFINITY ? __expf(s1 - best) : 0.f;
      const float sum = warp_sum(e0 + e1), shrink = before > NEGATIVE_INFINITY ? __expf(before - best) : 0.f;
      p[h][lane] = e0;
      p[h][lane + 32] = e1;
      __syncwarp();
      if (lane == 0) alpha[h] = shrink, running_sum[h] = running_sum[h] * shrink + sum, running_max[h] = best;
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      const float shrink = alpha[h];
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) acc[h][c].x *= shrink, acc[h][c].y *= shrink;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int row = warp * 8 + i;
      if (base + row < end)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          const int d = c * 64 + lane * 2;
          if (d < HD) {
            const float2 value = half2_to_floats(*(const u32*)(values + row * STRIDE + d));
#pragma unroll
            for (int h = 0; h < HEADS; h++) acc[h][c].x += p[h][row] * value.x, acc[h][c].y += p[h][row] * value.y;
          }
        }
    }
    __syncthreads();
    if (base + PAGE < end) fetch(base + PAGE);
  }
  float* partial = (float*)space;  // [warp][HEADS][HD]
#pragma unroll
  for (int h = 0; h < HEADS; h++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      const int d = c * 64 + lane * 2;
      if (d < HD) *(float2*)(partial + (warp * HEADS + h) * HD + d) = acc[h][c];
    }
  __syncthreads();
  for (int i = thread; i < HEADS * HD; i += 256) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < 8; w++) sum += partial[w * HEADS * HD + i];
    a.out[((u64)(first_head + i / HD) * a.max_splits + blockIdx.x) * HD + i % HD] = sum;
  }
  if (thread < HEADS) a.sums[(first_head + thread) * a.max_splits + blockIdx.x] = make_float2(running_max[thread], running_sum[thread]);
}

constexpr int MOST_SPLITS = 256;

struct AttentionMergeArgs {
  const float* partial;   // [n_heads, max_splits, head_dim]
  const float2* sums;
  const float* sinks;     // [n_heads] or null
  const int* position;
  float* out;             // [n_heads · head_dim]
  int head_dim, window, split_keys, max_splits;
};

// A block a head: a warp finds the scale of each split, then four groups of 128 threads, a thread a
// column, sum a quarter of the splits each.
ENTRY __launch_bounds__(512) attention_merge(const __grid_constant__ AttentionMergeArgs a) {
  __shared__ float scale[MOST_SPLITS], part[4][128], inverse;
  const int head = blockIdx.x, d = threadIdx.x & 127, group = threadIdx.x >> 7, position = __ldcg(a.position);
  const int n_splits = min((position - first_page_key(position, a.window)) / a.split_keys + 1, MOST_SPLITS);
  wait_for_previous_kernel();
  release_next_kernel();
  const float2* sums = a.sums + head * a.max_splits;
  if (threadIdx.x < 32) {
    const float sink = a.sinks ? __ldg(a.sinks + head) : NEGATIVE_INFINITY;
    float best = sink, total = 0;
    for (int s = threadIdx.x; s < n_splits; s += 32) best = fmaxf(best, __ldcg(sums + s).x);
    best = warp_max(best);
    for (int s = threadIdx.x; s < n_splits; s += 32) {
      const float2 ms = __ldcg(sums + s);
      scale[s] = __expf(ms.x - best);
      total += scale[s] * ms.y;
    }
    total = warp_sum(total) + (a.sinks ? __expf(sink - best) : 0.f);
    if (threadIdx.x == 0) inverse = 1.f / total;
  }
  __syncthreads();
  float v = 0;
  if (d < a.head_dim) {
    const float* partial = a.partial + (u64)head * a.max_splits * a.head_dim + d;
#pragma unroll 8
    for (int s = group; s < n_splits; s += 4) v += scale[s] * __ldcg(partial + s * a.head_dim);
  }
  part[group][d] = v;
  __syncthreads();
  if (group == 0 && d < a.head_dim) a.out[head * a.head_dim + d] = (part[0][d] + part[1][d] + part[2][d] + part[3][d]) * inverse;
}
