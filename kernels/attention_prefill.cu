// Causal attention of a chunk over the paged KV cache (flash attention), halves in, float32 accumulate:
//   out[t, h] = Σ softmax(scale · q·k, with the head's sink logit in the denominator) · v
// Query position p sees keys (p - window, p], or [0, p]. Block: 64 query rows (x) of one head (y), four
// warps of 16 rows; 64 keys a step, keys and values double-buffered by cp.async. A row's result does
// not depend on which other rows share its block.
#include "kv_page.cuh"

struct AttentionPrefillArgs {
  const u16* q;            // [tokens, n_heads · head_dim], rotated
  float* out;              // [tokens, n_heads · head_dim], or null
  u16* half_out;
  const float* sinks;      // [n_heads] or null
  const int* position;     // of the first token
  KvCache cache;
  int tokens, n_heads, window;
  float scale;
};

template <int HD>
INLINE void attention_prefill(const AttentionPrefillArgs& a) {
  constexpr int STRIDE = HD + 8, VECTORS = HD / 8, TILE = PAGE * STRIDE;
  extern __shared__ __align__(128) u8 shared[];
  u16* q_tile = (u16*)shared;
  u16* kv = q_tile + TILE;  // [2 stages][keys, values]
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, head = blockIdx.y;
  const int kv_head = head / (a.n_heads / a.cache.n_kv_heads), row0 = (gridDim.x - 1 - blockIdx.x) * 64;
  const int position0 = __ldg(a.position) + row0, rows = min(64, a.tokens - row0);
  const int first = first_page_key(position0, a.window), last = position0 + rows - 1;
  auto fetch = [&](int stage, int key) {
    if (key <= last) {
      u16* to = kv + stage * 2 * TILE;
      const u16* from_k = kv_tile(a.cache, key, 0, kv_head);
      const u16* from_v = kv_tile(a.cache, key, 1, kv_head);
      for (int i = thread; i < PAGE * VECTORS; i += 128) {
        const int row = i / VECTORS, c = i % VECTORS;
        const bool valid = key + row <= last;
        const int place = row * STRIDE + kv_chunk(HD, row, c) * 8;
        copy16(to + place, from_k + i * 8, valid);
        copy16(to + TILE + place, from_v + i * 8, valid);
      }
    }
    copy_commit();
  };
  for (int i = thread; i < PAGE * VECTORS; i += 128) {
    const int row = i / VECTORS, c = i % VECTORS;
    copy16(q_tile + row * STRIDE + c * 8, a.q + ((u64)(row0 + min(row, rows - 1)) * a.n_heads + head) * HD + c * 8, row < rows);
  }
  fetch(0, first);
  u32 fq[HD / 16][4];
  float acc[HD / 8][4], row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {0, 0};
#pragma unroll
  for (int j = 0; j < HD / 8; j++)
#pragma unroll
    for (int c = 0; c < 4; c++) acc[j][c] = 0;
  const float scale = a.scale * 1.4426950408889634f;

  for (int base = first, step = 0; base <= last; base += PAGE, step++) {
    fetch((step + 1) & 1, base + PAGE);
    copy_wait<1>();
    __syncthreads();
    if (step == 0)
#pragma unroll
      for (int kk = 0; kk < HD / 16; kk++) load_matrix4(fq[kk], shared_address(q_tile + (warp * 16 + (lane & 15)) * STRIDE + kk * 16 + (lane >> 4) * 8));
    const u16* keys = kv + (step & 1) * 2 * TILE;
    const u16* values = keys + TILE;
    float s[8][4];
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int c = 0; c < 4; c++) s[j][c] = 0;
#pragma unroll
    for (int kk = 0; kk < HD / 16; kk++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        u32 fk[4];
        load_matrix4(fk, shared_address(keys + (j * 16 + (lane & 7) + ((lane >> 4) << 3)) * STRIDE + kk * 16 + (lane >> 3 & 1) * 8));
        mma16816(s[2 * j], fq[kk], fk[0], fk[1]);
        mma16816(s[2 * j + 1], fq[kk], fk[2], fk[3]);
      }
    float best[2] = {row_max[0], row_max[1]};
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const int key = base + j * 8 + (lane & 3) * 2 + (c & 1), at = position0 + warp * 16 + (lane >> 2) + (c >> 1) * 8;
        const bool visible = key <= at && (a.window <= 0 || key > at - a.window);
        s[j][c] = visible ? s[j][c] * scale : -INFINITY;
        best[c >> 1] = fmaxf(best[c >> 1], s[j][c]);
      }
    float anchor[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      best[r] = fmaxf(best[r], __shfl_xor_sync(~0u, best[r], 1));
      best[r] = fmaxf(best[r], __shfl_xor_sync(~0u, best[r], 2));
      anchor[r] = best[r] == -INFINITY ? 0.f : best[r];
      const float shrink = exp2f(row_max[r] - anchor[r]);
      row_max[r] = best[r];
      row_sum[r] *= shrink;
#pragma unroll
      for (int j = 0; j < HD / 8; j++) acc[j][2 * r] *= shrink, acc[j][2 * r + 1] *= shrink;
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int c = 0; c < 4; c++) {
        s[j][c] = exp2f(s[j][c] - anchor[c >> 1]);
        row_sum[c >> 1] += s[j][c];
      }
#pragma unroll
    for (int kk = 0; kk < 4; kk++) {
      const u32 fp[4] = {floats_to_half2(s[2 * kk][0], s[2 * kk][1]), floats_to_half2(s[2 * kk][2], s[2 * kk][3]),
                         floats_to_half2(s[2 * kk + 1][0], s[2 * kk + 1][1]), floats_to_half2(s[2 * kk + 1][2], s[2 * kk + 1][3])};
#pragma unroll
      for (int j = 0; j < HD / 16; j++) {
        u32 fv[4];
        load_matrix4_transposed(fv, shared_address(values + (kk * 16 + (lane & 15)) * STRIDE + j * 16 + (lane >> 4) * 8));
        mma16816(acc[2 * j], fp, fv[0], fv[1]);
        mma16816(acc[2 * j + 1], fp, fv[2], fv[3]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float total = row_sum[r];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    float factor = 1.f;
    if (a.sinks) {
      const float sink = __ldg(a.sinks + head) * 1.4426950408889634f, best = fmaxf(sink, row_max[r]);
      factor = exp2f(row_max[r] - best);
      total = total * factor + exp2f(sink - best);
    }
    factor /= total;
    const int row = warp * 16 + (lane >> 2) + r * 8;
    if (row >= rows) continue;
#pragma unroll
    for (int j = 0; j < HD / 8; j++) {
      const u64 at = ((u64)(row0 + row) * a.n_heads + head) * HD + j * 8 + (lane & 3) * 2;
      const float v0 = acc[j][2 * r] * factor, v1 = acc[j][2 * r + 1] * factor;
      if (a.half_out) *(u32*)(a.half_out + at) = floats_to_half2(v0, v1);
      if (a.out) *(float2*)(a.out + at) = make_float2(v0, v1);
    }
  }
}
