// Attention of one token over the paged KV cache, split over keys (flash decoding):
//   for each split: o = Σ exp(s - m)·v, m = max s, l = Σ exp(s - m), s = scale · q·k
// The splits are a function of the position alone (split.cuh), so the result is too. RoPE of q and k and
// the append to the cache happen here. attention_merge joins the splits:  out = Σ o·e^(m-M) / Σ l·e^(m-M).
// Grid: x over splits of CLUSTER blocks each, y over kv heads' groups of HEADS query heads. A warp takes
// every WARPS · CLUSTER-th step of 16 keys of the split through its own stream of SLOTS steps, keys and values
// a tile each, on tensor cores: S = K·qᵀ, O = Vᵀ·P, so that keys and dimensions fill the 16 rows and heads the
// 8 columns (q and the probabilities in halves, as in prefill). The warps' results are joined in shared
// memory, the blocks' in distributed shared memory (CLUSTER > 1: sm_90), in order: each block counts the
// bytes that the others store to it, which takes no fence.
#include "kv_page.cuh"
#include "stream.cuh"

struct AttentionDecodeArgs {
  const float* q;
  const float* k;
  const float* v;
  float* out;             // [n_heads, max_splits, head_dim]
  float2* sums;           // [n_heads, max_splits] (m, l)
  const float2* table;    // RoPE
  const int* position;
  KvCache cache;
  int n_pairs, window, least_keys, max_splits, groups;   // groups: blocks a kv head
  float scale;
};

// What the blocks of a cluster store to this one: a barrier that is over once so many bytes are there.
struct ClusterInbox {
  u32 barrier;

  // One thread opens it; all arrive, and wait before their first store to another block.
  INLINE void open(u32 bytes) const {
#if HAS_BULK_COPY
    barrier_init(barrier, 1);
    barrier_expect(barrier, bytes);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  INLINE static void arrive() {
#if HAS_BULK_COPY
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
  }
  INLINE static void wait_for_others() {
#if HAS_BULK_COPY
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
  }
  // Store to the same place in the shared memory of the cluster's block `rank`.
  INLINE void store(float* at, int rank, float value) const {
#if HAS_BULK_COPY
    u32 to, inbox;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(at)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(inbox) : "r"(barrier), "r"(rank));
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to), "r"(__float_as_uint(value)), "r"(inbox) : "memory");
#endif
  }
  INLINE void wait_for_all() const {
#if HAS_BULK_COPY
    u32 done;
    do {
      asm volatile("{.reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(barrier) : "memory");
    } while (!done);
#endif
  }
};

template <int HD, int HEADS, int PAIRS, int WARPS, int SLOTS, int CLUSTER>
INLINE void attention_decode(const AttentionDecodeArgs& a) {
  constexpr int CHUNKS = HD / 8, THREADS = WARPS * 32, TILE = STEP_KEYS * HD, TILES = 2 * SLOTS, SIZE = HEADS * HD, STRIDE = WARPS * CLUSTER;
  constexpr int SHARE = (SIZE + CLUSTER - 1) / CLUSTER, Q_ROUNDS = (SIZE + THREADS - 1) / THREADS, KV_ROUNDS = (HD + THREADS - 1) / THREADS;
  extern __shared__ __align__(128) u8 space[];  // [warp][tile][16][HD] halves, then the warps' sums
  __shared__ __align__(16) float q[HEADS][HD];
  __shared__ __align__(16) u16 newest[2][HD];
  __shared__ float2 rope[HD / 2];
  __shared__ u64 barriers[WARPS][TILES];
  __shared__ float2 warp_sums[WARPS][HEADS], block_sums[CLUSTER][HEADS];
  __shared__ float block_out[CLUSTER > 1 ? CLUSTER * SHARE : 1];
  __shared__ u64 inbox_barrier;
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, column = 2 * (lane & 3), row = lane >> 2;
  const int kv_head = blockIdx.y / a.groups, first_head = blockIdx.y * HEADS;
  const int split = blockIdx.x / CLUSTER, rank = blockIdx.x % CLUSTER;
  const int position = __ldcg(a.position), first_key = first_page_key(position, a.window);
  const int split_keys = keys_a_split(position + 1 - first_key, a.max_splits, a.least_keys);
  const int begin = first_key + split * split_keys, end = min(begin + split_keys, position + 1);
  if (begin > position) {
    wait_for_previous_kernel();
    release_next_kernel();
    return;
  }
  const ClusterInbox inbox{shared_address(&inbox_barrier)};
  if (CLUSTER > 1) {
    if (thread == 0) inbox.open(CLUSTER * (4 * max(0, min(SHARE, SIZE - rank * SHARE)) + 8 * HEADS));
    __syncwarp();
    inbox.arrive();
  }
  const int steps = (end - begin + STEP_KEYS - 1) / STEP_KEYS, first_step = rank * WARPS + warp;
  TileStream<TILES, TILE * 2, true> stream(space + warp * TILES * TILE * 2, barriers[warp]);
  const int value_offset = a.cache.n_kv_heads * PAGE * HD;
  auto keys_of = [&](int step) -> const u16* {
    const int key = begin + step * STEP_KEYS;
    return step < steps ? kv_tile(a.cache, key, 0, kv_head) + key % PAGE * HD : nullptr;
  };
  const u16* from = keys_of(first_step);  // keys of the step to fetch next, asked for a step ahead
  auto fetch = [&](int slot, int value) { stream.fetch(slot, (const u8*)(from + value * value_offset), TILE * 2, from != nullptr); };
#pragma unroll
  for (int s = 0; s < SLOTS; s++) {  // earlier tokens' keys are complete
    fetch(2 * s, 0);
    fetch(2 * s + 1, 1);
    from = keys_of(first_step + (s + 1) * STRIDE);
  }
  const bool has_newest = end == position + 1;
  const u64 newest_page = has_newest ? __ldcg(a.cache.pages + position / PAGE) : 0;
  if (PAIRS != NO_ROPE)
    for (int i = thread; i < a.n_pairs; i += THREADS) rope[i] = __ldg(a.table + (u64)position * a.n_pairs + i);
  __syncthreads();
  wait_for_previous_kernel();
  release_next_kernel();
  float2 raw_q[Q_ROUNDS], raw_k[KV_ROUNDS];  // all asked for before any is waited for
  float raw_v[KV_ROUNDS];
#pragma unroll
  for (int r = 0; r < Q_ROUNDS; r++)
    if (const int i = thread + r * THREADS; i < SIZE) raw_q[r] = rope_pair<PAIRS>(a.q + (first_head + i / HD) * HD, i % HD, a.n_pairs);
  if (has_newest)
#pragma unroll
    for (int r = 0; r < KV_ROUNDS; r++)
      if (const int d = thread + r * THREADS; d < HD) raw_k[r] = rope_pair<PAIRS>(a.k + kv_head * HD, d, a.n_pairs), raw_v[r] = __ldcg(a.v + kv_head * HD + d);
#pragma unroll
  for (int r = 0; r < Q_ROUNDS; r++)
    if (const int i = thread + r * THREADS; i < SIZE) q[i / HD][i % HD] = rotated<PAIRS>(raw_q[r], i % HD, rope, a.n_pairs) * a.scale;
  if (has_newest)
#pragma unroll
    for (int r = 0; r < KV_ROUNDS; r++) {
      const int d = thread + r * THREADS, place = kv_place(HD, position % PAGE, d);
      if (d >= HD) break;
      newest[0][d] = float_to_half(rotated<PAIRS>(raw_k[r], d, rope, a.n_pairs));
      newest[1][d] = float_to_half(raw_v[r]);
      if (rank == 0 && blockIdx.y % a.groups == 0) {
        kv_tile(a.cache, newest_page, 0, kv_head)[place] = newest[0][d];
        kv_tile(a.cache, newest_page, 1, kv_head)[place] = newest[1][d];
      }
    }
  __syncthreads();
  u32 fq[HD / 16][2];
#pragma unroll
  for (int kk = 0; kk < HD / 16; kk++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float2 v = row < HEADS ? *(const float2*)&q[row < HEADS ? row : 0][kk * 16 + half * 8 + column] : make_float2(0, 0);
      fq[kk][half] = floats_to_half2(v.x, v.y);
    }
  float acc[HD / 16][4], best[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sum[2] = {0, 0};  // of heads column, column + 1
#pragma unroll
  for (int j = 0; j < HD / 16; j++)
#pragma unroll
    for (int c = 0; c < 4; c++) acc[j][c] = 0;

  for (int step = first_step, n = 0; step < steps; step += STRIDE, n += 2) {
    const int key = begin + step * STEP_KEYS, newest_row = position - key;
    // The stream's next tile, with this token's row in it and zeros after it.
    auto next_tile = [&](int value) {
      u16* tile = (u16*)stream.wait(n + value);
      if (newest_row < STEP_KEYS) {
#pragma unroll 1
        for (int i = newest_row * CHUNKS + lane; i < STEP_KEYS * CHUNKS; i += 32) {
          const int c = i - newest_row * CHUNKS;
          *(uint4*)(tile + (c < CHUNKS ? kv_place(HD, newest_row, c * 8) : i * 8)) = c < CHUNKS ? *(const uint4*)&newest[value][c * 8] : make_uint4(0, 0, 0, 0);
        }
        __syncwarp();
      }
      return tile;
    };
    const u16* keys = next_tile(0);
    float s[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0};  // keys row and row + 8 by heads column and column + 1
#pragma unroll
    for (int kk = 0; kk < HD / 16; kk++) {
      u32 fk[4];
      load_matrix4(fk, shared_address(keys + kv_place(HD, lane & 15, kk * 16 + (lane >> 4) * 8)));
      mma16816(kk % 2 ? odd : s, fk, fq[kk][0], fq[kk][1]);
    }
    __syncwarp();
    fetch(n % TILES, 0);
    const int at = key + row;
    const bool low = at < end && (a.window <= 0 || at > position - a.window);
    const bool high = at + 8 < end && (a.window <= 0 || at + 8 > position - a.window);
    float shrink[2] = {1, 1};
#pragma unroll
    for (int h = 0; h < 2; h++) {
      if (h == HEADS) continue;
      s[h] += odd[h], s[h + 2] += odd[h + 2];
      float now = best[h];
      if (low) now = fmaxf(now, s[h]);
      if (high) now = fmaxf(now, s[h + 2]);
#pragma unroll
      for (int o = 4; o <= 16; o <<= 1) now = fmaxf(now, __shfl_xor_sync(~0u, now, o));
      shrink[h] = __expf(best[h] - now);
      s[h] = low ? __expf(s[h] - now) : 0.f, s[h + 2] = high ? __expf(s[h + 2] - now) : 0.f;
      sum[h] = sum[h] * shrink[h] + s[h] + s[h + 2];
      best[h] = now;
    }
    const u32 p0 = transposed_matrix(floats_to_half2(s[0], s[1])), p1 = transposed_matrix(floats_to_half2(s[2], s[3]));
    const int value_row = (lane & 7) + ((lane >> 4) << 3);
    const u16* values = next_tile(1);
#pragma unroll
    for (int j = 0; j < HD / 16; j++) {
      u32 fv[4];
      load_matrix4_transposed(fv, shared_address(values + kv_place(HD, value_row, j * 16 + (lane >> 3 & 1) * 8)));
#pragma unroll
      for (int c = 0; c < 4; c++) acc[j][c] *= shrink[c & 1];
      mma16816(acc[j], fv, p0, p1);
    }
    __syncwarp();
    fetch((n + 1) % TILES, 1);
    from = keys_of(step + (SLOTS + 1) * STRIDE);
  }
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int o = 4; o <= 16; o <<= 1) sum[h] += __shfl_xor_sync(~0u, sum[h], o);
  __syncthreads();
  float* partial = (float*)space;  // [warp][HEADS][HD]
#pragma unroll
  for (int h = 0; h < 2; h++) {
    if (column + h >= HEADS) continue;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) partial[(warp * HEADS + column + h) * HD + j * 8 + row] = acc[j / 2][j % 2 * 2 + h];
    if (row == 0) warp_sums[warp][column + h] = make_float2(best[h], sum[h]);
  }
  __syncthreads();
  if (CLUSTER > 1) inbox.wait_for_others();
#pragma unroll
  for (int i = thread; i < SIZE; i += THREADS) {
    const int h = i / HD, d = i % HD;
    float most = NEGATIVE_INFINITY, v = 0, total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) most = fmaxf(most, warp_sums[w][h].x);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      const float e = __expf(warp_sums[w][h].x - most);
      v += e * partial[(w * HEADS + h) * HD + d];
      total += e * warp_sums[w][h].y;
    }
    if (CLUSTER > 1) {
      inbox.store(block_out + rank * SHARE + i % SHARE, i / SHARE, v);
      if (d < CLUSTER) inbox.store(&block_sums[rank][h].x, d, most), inbox.store(&block_sums[rank][h].y, d, total);
    } else {
      a.out[((u64)(first_head + h) * a.max_splits + split) * HD + d] = v;
      if (d == 0) a.sums[(first_head + h) * a.max_splits + split] = make_float2(most, total);
    }
  }
  if (CLUSTER == 1) return;
  inbox.wait_for_all();
#pragma unroll
  for (int i = thread; i < SHARE; i += THREADS) {
    const int at = rank * SHARE + i, h = at / HD;
    if (at >= SIZE) break;
    float most = NEGATIVE_INFINITY, v = 0, total = 0;
#pragma unroll
    for (int c = 0; c < CLUSTER; c++) most = fmaxf(most, block_sums[c][h].x);
#pragma unroll
    for (int c = 0; c < CLUSTER; c++) {
      const float e = __expf(block_sums[c][h].x - most);
      v += e * block_out[c * SHARE + i];
      total += e * block_sums[c][h].y;
    }
    a.out[((u64)(first_head + h) * a.max_splits + split) * HD + at % HD] = v;
    if (at % HD == 0) a.sums[(first_head + h) * a.max_splits + split] = make_float2(most, total);
  }
}

constexpr int MOST_SPLITS = 256;

struct AttentionMergeArgs {
  const float* partial;   // [n_heads, max_splits, head_dim]
  const float2* sums;
  const float* sinks;     // [n_heads] or null
  const int* position;
  float* out;             // [n_heads · head_dim]
  int head_dim, window, least_keys, max_splits;
};

// A block a head: a warp finds the scale of each split, then four groups of 128 threads, a thread a
// column, sum a quarter of the splits each.
ENTRY __launch_bounds__(512) attention_merge(const __grid_constant__ AttentionMergeArgs a) {
  __shared__ float scale[MOST_SPLITS], part[4][128], inverse;
  const int head = blockIdx.x, d = threadIdx.x & 127, group = threadIdx.x >> 7, position = __ldcg(a.position);
  const int n_keys = position + 1 - first_page_key(position, a.window);
  const int n_splits = (n_keys - 1) / keys_a_split(n_keys, a.max_splits, a.least_keys) + 1;
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
