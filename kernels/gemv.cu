// Decode linear: out = f(x) · weightᵀ for one token, quantized weights, fused with what is around it.
//   prologue  PLAIN: x; NORM: RMSNorm(x + Σ pending); ATTENTION: the splits of attention_decode merged;
//             EXPERT_IN: RMSNorm(x), then gate and up of the chosen experts; EXPERT_OUT: row `slot` of x
//   epilogue  STORE: out = v + bias; ADD: out += v + bias + Σ pending; ADD_ROUTE: ADD, and partial router
//             logits and sum of squares of the new rows; SILU, CLAMPED: rows 2j, 2j+1 are gate and up,
//             out[j] = act(gate, up); EXPERT_OUT: out[slot] = routing weight · (v + bias);
//             LOGITS: out = v and the block's best (value, index)
// A warp owns whole tiles of R rows and streams them through its own ring (stream.cuh); every block
// stages the activation (activation.cuh) itself. Tile t goes to block t % grid, warp t / grid % WARPS.
// Of the ring, as much is asked for before the activation as the memory brings while the kernel before
// ends: the activation would queue behind more of it.
// The sum of a row has one order whatever R, WARPS, SLOTS and the grid are.
// Variants are named gemv<type of segments 0 and 1, of segment 2, K, R, WARPS, SLOTS, prologue, epilogue,
// experts, chosen, evict first>; the launcher writes one entry for each that a model needs.
#include "activation.cuh"
#include "kv_page.cuh"
#include "stream.cuh"

enum Prologue { PLAIN, NORM, ATTENTION, EXPERT_IN, EXPERT_OUT_PRO };
enum Epilogue { STORE, ADD, ADD_ROUTE, SILU, CLAMPED, EXPERT_OUT, LOGITS };

struct GemvArgs {
  const u8* weights[3];      // up to three matrices over the same x
  float* out[3];
  const float* bias[3];      // null: none; experts: [n_experts, rows]
  const float* x;
  const float* norm_weight;
  const float* pending;      // [chosen, width] of the mixture of experts before, or null
  const float* split_sums;   // ATTENTION: [n_heads, MAX_SPLITS] (max, sum)
  const float* sinks;        // ATTENTION: [n_heads] or null
  const int* position;       // ATTENTION: of this token
  const float* router;       // ADD_ROUTE: [rows, 32], norm weight folded in
  const float* router_bias;  // experts: [32]
  float* partials;           // [grid, 32] logits then [grid] sums of squares
  float* best_value;         // LOGITS: [grid]
  int* best_index;
  u64 expert_bytes;
  int tile_end[3];           // running count of tiles after each segment
  int rows[3];
  int head_dim, window, least_keys, n_partials, router_width, real_k;
  int early_tiles;           // of a block's ring, asked for before its activation
  float eps;
  KvAhead ahead;             // PLAIN, ADD without experts
};

constexpr int MAX_SPLITS = 8;  // of attention merged in a prologue

// The CHOSEN best of 32 router logits, lower expert first among equals, softmax over them; every warp alike.
template <int WARPS, int CHOSEN>
INLINE void choose_experts(const GemvArgs& a, float* scratch, int* chosen, float* routing) {
  const int w = threadIdx.x >> 5, lane = threadIdx.x & 31;
  float sum = 0, squares = 0;
  const float bias = __ldg(a.router_bias + lane);
  for (int i = w; i < a.n_partials; i += WARPS) sum += __ldcg(a.partials + i * 32 + lane);
  for (int i = lane; i < a.n_partials; i += 32) squares += __ldcg(a.partials + a.n_partials * 32 + i);
  scratch[w * 32 + lane] = sum;
  __syncthreads();
  const float inverse = rsqrtf(warp_sum(squares) / a.router_width + a.eps);
  float logit = 0;
#pragma unroll
  for (int i = 0; i < WARPS; i++) logit += scratch[i * 32 + lane];
  logit = logit * inverse + bias;
  u32 key = __float_as_uint(logit);
  key ^= key >> 31 ? 0xffffffffu : 0x80000000u;
  float value[CHOSEN], total = 0;
#pragma unroll
  for (int c = 0; c < CHOSEN; c++) {
    const u32 best = __reduce_max_sync(~0u, key);
    const int expert = __ffs(__ballot_sync(~0u, key == best)) - 1;
    if (lane == expert) key = 0;
    value[c] = __shfl_sync(~0u, logit, expert);
    if (lane == 0) chosen[c] = expert;
  }
#pragma unroll
  for (int c = CHOSEN - 1; c >= 0; c--) total += value[c] = __expf(value[c] - value[0]);
  if (lane == 0)
#pragma unroll
    for (int c = 0; c < CHOSEN; c++) routing[c] = value[c] / total;
  __syncwarp();
}

// Four consecutive columns of attention's output in at most MOST splits.
template <int MOST>
struct SplitColumns {
  float2 sums[MOST];
  float4 parts[MOST];

  INLINE void load(const GemvArgs& a, int n_splits, int column) {
    const int head = column / a.head_dim, d = column % a.head_dim;
#pragma unroll
    for (int s = 0; s < MOST; s++)
      if (s < n_splits) {
        sums[s] = __ldcg((const float2*)a.split_sums + head * MAX_SPLITS + s);
        parts[s] = __ldcg((const float4*)(a.x + (head * MAX_SPLITS + s) * a.head_dim + d));
      }
  }
  INLINE float4 merged(const GemvArgs& a, int n_splits, int column) const {
    const float sink = a.sinks ? __ldg(a.sinks + column / a.head_dim) : NEGATIVE_INFINITY;
    float4 v = make_float4(0, 0, 0, 0);
    float best = sink;
#pragma unroll
    for (int s = 0; s < MOST; s++)
      if (s < n_splits) best = fmaxf(best, sums[s].x);
    float total = a.sinks ? __expf(sink - best) : 0.f;
#pragma unroll
    for (int s = 0; s < MOST; s++)
      if (s < n_splits) {
        const float e = __expf(sums[s].x - best);
        total += e * sums[s].y;
        v.x += e * parts[s].x, v.y += e * parts[s].y, v.z += e * parts[s].z, v.w += e * parts[s].w;
      }
    const float inverse = 1.f / total;
    return make_float4(v.x * inverse, v.y * inverse, v.z * inverse, v.w * inverse);
  }
};

// A thread's columns of the merged attention output, ITEMS times four; two splits of all are asked for at once.
template <int ITEMS, int THREADS, int REAL_K>
INLINE void merge_splits(const GemvArgs& a, int n_splits, float4* v) {
  if (n_splits <= 2) {
    SplitColumns<2> columns[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
      if (const int column = 4 * (threadIdx.x + i * THREADS); column < REAL_K) columns[i].load(a, n_splits, column);
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
      if (const int column = 4 * (threadIdx.x + i * THREADS); column < REAL_K) v[i] = columns[i].merged(a, n_splits, column);
  } else {
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
      if (const int column = 4 * (threadIdx.x + i * THREADS); column < REAL_K) {
        SplitColumns<MAX_SPLITS> columns;
        columns.load(a, n_splits, column);
        v[i] = columns.merged(a, n_splits, column);
      }
  }
}

template <int EPILOGUE>
INLINE float gated(float gate, float up) {
  if (EPILOGUE == SILU) return gate / (1.f + __expf(-gate)) * up;
  gate = fminf(gate, 7.f);
  up = fminf(fmaxf(up, -7.f), 7.f);
  return gate / (1.f + __expf(-1.702f * gate)) * (up + 1.f);
}

template <int TA, int TB, int REAL_K, int R, int WARPS, int SLOTS, int PROLOGUE, int EPILOGUE, int EXPERTS, int CHOSEN, bool EVICT_FIRST>
INLINE void gemv(const GemvArgs& a) {
  constexpr int K = (REAL_K + 31) / 32 * 32, THREADS = WARPS * 32;
  constexpr int BYTES_A = tile_bytes(TA, R, K), BYTES_B = tile_bytes(TB, R, K), SLOT = BYTES_A > BYTES_B ? BYTES_A : BYTES_B;
  constexpr bool FLOATS = is_float_type(TA), NORMED = PROLOGUE == NORM || PROLOGUE == EXPERT_IN;
  constexpr int GROUPS = (K / 4 + 31) / 32 * 32, ITEMS = (GROUPS + THREADS - 1) / THREADS;
  extern __shared__ __align__(128) u8 shared[];
  u8* staged = shared + WARPS * SLOTS * SLOT;
  float* scratch = (float*)(staged + activation_bytes<FLOATS>(K));
  float* warp_squares = scratch + WARPS * 32;
  float* routing = warp_squares + WARPS;
  int* chosen = (int*)(routing + 8);
  u64* barriers = (u64*)(((size_t)(chosen + 8) + 7) & ~(size_t)7);

  const int w = threadIdx.x >> 5, lane = threadIdx.x & 31;
  constexpr int SHARES = PROLOGUE == EXPERT_OUT_PRO ? CHOSEN : 1;
  const int slot = PROLOGUE == EXPERT_OUT_PRO ? blockIdx.x % CHOSEN : 0;
  const int block = blockIdx.x / SHARES, blocks = gridDim.x / SHARES, stride = WARPS * blocks;
  const int first = w * blocks + block, n_tiles = a.tile_end[2];
  const int expert_tiles = n_tiles / (PROLOGUE == EXPERT_IN ? CHOSEN : 1);
  TileStream<SLOTS, SLOT, EVICT_FIRST> stream(shared + w * SLOTS * SLOT, barriers + w * SLOTS);

  auto fetch = [&](int t, int s) {
    const bool valid = t < n_tiles;
    if constexpr (PROLOGUE == EXPERT_OUT_PRO) {
      stream.fetch(s, a.weights[0] + (u64)chosen[slot] * a.expert_bytes + (u64)t * BYTES_A, BYTES_A, valid);
    } else if constexpr (PROLOGUE == EXPERT_IN) {
      stream.fetch(s, a.weights[0] + (u64)(valid ? chosen[t / expert_tiles] : 0) * a.expert_bytes + (u64)(t % expert_tiles) * BYTES_A, BYTES_A, valid);
    } else {
      const int segment = t < a.tile_end[0] ? 0 : t < a.tile_end[1] ? 1 : 2;
      const u32 bytes = segment == 2 ? BYTES_B : BYTES_A;
      const int base = segment == 0 ? 0 : segment == 1 ? a.tile_end[0] : a.tile_end[1];
      stream.fetch(s, (segment == 0 ? a.weights[0] : segment == 1 ? a.weights[1] : a.weights[2]) + (u64)(t - base) * bytes, bytes, valid);
    }
  };
  auto fill_ring = [&](bool early) {
#pragma unroll
    for (int s = 0; s < SLOTS; s++)
      if ((s * WARPS + w < a.early_tiles) == early) fetch(first + s * stride, s);
  };
  if constexpr (PROLOGUE == EXPERT_OUT_PRO) choose_experts<WARPS, CHOSEN>(a, scratch, chosen, routing);
  if (PROLOGUE != EXPERT_IN) fill_ring(true);
  float4 gain[ITEMS];  // norm weights never change: fetched before the wait
  if (NORMED)
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      const int t = threadIdx.x + i * THREADS;
      gain[i] = 4 * t < REAL_K ? __ldg((const float4*)a.norm_weight + t) : make_float4(0, 0, 0, 0);
    }
  int n_splits = 0;
  if (PROLOGUE == ATTENTION) {
    const int position = __ldcg(a.position), n_keys = position + 1 - first_page_key(position, a.window);
    n_splits = (n_keys - 1) / keys_a_split(n_keys, MAX_SPLITS, a.least_keys) + 1;
  }
  if (CHOSEN == 0) release_next_kernel();
  wait_for_previous_kernel();
  if (CHOSEN > 0) release_next_kernel();

  float4 v[ITEMS];
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const int t = threadIdx.x + i * THREADS;
    v[i] = make_float4(0, 0, 0, 0);
    if (4 * t < REAL_K) {
      if (PROLOGUE != ATTENTION) v[i] = __ldcg((const float4*)(a.x + (u64)slot * REAL_K) + t);
      if (PROLOGUE == NORM && CHOSEN > 0 && a.pending)
#pragma unroll
        for (int c = 0; c < CHOSEN; c++) {
          const float4 p = __ldcg((const float4*)(a.pending + c * REAL_K) + t);
          v[i].x += p.x, v[i].y += p.y, v[i].z += p.z, v[i].w += p.w;
        }
    }
  }
  if constexpr (PROLOGUE == ATTENTION) merge_splits<ITEMS, THREADS, REAL_K>(a, n_splits, v);
  if constexpr (PROLOGUE == EXPERT_IN) {
    choose_experts<WARPS, CHOSEN>(a, scratch, chosen, routing);
    fill_ring(true);
  }
  fill_ring(false);  // behind the activation's loads
  float squares = 0, factor = 1.f;
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const int t = threadIdx.x + i * THREADS;
    if (i * THREADS + w * 32 < GROUPS) {
      if (NORMED) {
        squares += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
        v[i] = make_float4(v[i].x * gain[i].x, v[i].y * gain[i].y, v[i].z * gain[i].z, v[i].w * gain[i].w);
      }
      if constexpr (FLOATS) {
        if (4 * t < K) ((float4*)staged)[t] = v[i];
      } else {
        stage_quantized<K>(staged, t, 4 * t < K, v[i]);
      }
    }
  }
  if (NORMED) {
    squares = warp_sum(squares);
    if (lane == 0) warp_squares[w] = squares;
  }
  __syncthreads();
  if (NORMED) {
    squares = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) squares += warp_squares[i];
    factor = rsqrtf(squares / REAL_K + a.eps);
  }

  if (PROLOGUE == PLAIN && EPILOGUE == ADD && CHOSEN == 0)
    if (w == WARPS - 1 && a.ahead.position) bring_ahead(a.ahead);

  float router_sum = 0, row_squares = 0, best = NEGATIVE_INFINITY;
  int best_row = 0x7fffffff, n = 0;
  const bool owner = (lane & (32 / R - 1)) == 0;
  for (int t = first; t < n_tiles; t += stride, n++) {
    const int segment = EPILOGUE != STORE ? 0 : t < a.tile_end[0] ? 0 : t < a.tile_end[1] ? 1 : 2;
    const int base = segment == 0 ? 0 : segment == 1 ? a.tile_end[0] : a.tile_end[1];
    const int row = (PROLOGUE == EXPERT_IN ? t % expert_tiles : t - base) * R + tile_row<R>(lane);
    const int rows = segment == 0 ? a.rows[0] : segment == 1 ? a.rows[1] : a.rows[2];
    const bool inside = row < rows;
    float* out = segment == 0 ? a.out[0] : segment == 1 ? a.out[1] : a.out[2];
    const float* bias = segment == 0 ? a.bias[0] : segment == 1 ? a.bias[1] : a.bias[2];
    float add = 0, router[R];
    if (inside && bias) {
      const int expert = PROLOGUE == EXPERT_IN ? chosen[t / expert_tiles] : PROLOGUE == EXPERT_OUT_PRO ? chosen[slot] : 0;
      add = __ldg(bias + (u64)expert * rows + row);
    }
    if ((EPILOGUE == ADD || EPILOGUE == ADD_ROUTE) && inside && owner) {
      float old = __ldcg(out + row);
      if (CHOSEN > 0 && a.pending)
#pragma unroll
        for (int c = 0; c < CHOSEN; c++) old += __ldcg(a.pending + c * rows + row);
      add += old;
    }
    if (EPILOGUE == ADD_ROUTE)
#pragma unroll
      for (int r = 0; r < R; r++) router[r] = t * R + r < rows ? __ldg(a.router + (u64)(t * R + r) * 32 + lane) : 0.f;

    const u8* tile = stream.wait(n);
    float acc[R];
    if (TA == TB || segment != 2) dot_tile<TA, K, R>(tile, staged, acc);
    else dot_tile<TB, K, R>(tile, staged, acc);
    __syncwarp();
    fetch(t + SLOTS * stride, n % SLOTS);
    const float value = lane_sum<R>(acc) * factor + add;

    if (EPILOGUE == STORE || EPILOGUE == ADD || EPILOGUE == ADD_ROUTE)
      if (inside && owner) out[row] = value;
    if (EPILOGUE == EXPERT_OUT && inside && owner) out[slot * rows + row] = routing[slot] * value;
    if (EPILOGUE == ADD_ROUTE) {
      if (inside && owner) row_squares += value * value;
#pragma unroll
      for (int r = 0; r < R; r++) router_sum += router[r] * __shfl_sync(~0u, value, row_lane<R>(r));
    }
    if (EPILOGUE == SILU || EPILOGUE == CLAMPED) {
      const float up = __shfl_xor_sync(~0u, value, 16);
      const int hidden = rows / 2, j = row >> 1;
      if (inside && owner && lane < 16) out[(PROLOGUE == EXPERT_IN ? t / expert_tiles * hidden : 0) + j] = gated<EPILOGUE>(value, up);
    }
    if (EPILOGUE == LOGITS && inside && owner) {
      out[row] = value;
      if (value > best || (value == best && row < best_row)) best = value, best_row = row;
    }
  }

  if (EPILOGUE == ADD_ROUTE) {
    row_squares = warp_sum(row_squares);
    __syncthreads();
    scratch[w * 32 + lane] = router_sum;
    if (lane == 0) warp_squares[w] = row_squares;
    __syncthreads();
    if (w == 0) {
      float sum = 0, total = 0;
#pragma unroll
      for (int i = 0; i < WARPS; i++) sum += scratch[i * 32 + lane], total += warp_squares[i];
      a.partials[blockIdx.x * 32 + lane] = sum;
      if (lane == 0) a.partials[gridDim.x * 32 + blockIdx.x] = total;
    }
  }
  if (EPILOGUE == LOGITS) {
#pragma unroll
    for (int o = 16; o; o >>= 1) {
      const float value = __shfl_xor_sync(~0u, best, o);
      const int index = __shfl_xor_sync(~0u, best_row, o);
      if (value > best || (value == best && index < best_row)) best = value, best_row = index;
    }
    __syncthreads();
    if (lane == 0) scratch[w] = best, ((int*)scratch)[WARPS + w] = best_row;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int i = 1; i < WARPS; i++) {
        const float value = scratch[i];
        const int index = ((int*)scratch)[WARPS + i];
        if (value > best || (value == best && index < best_row)) best = value, best_row = index;
      }
      a.best_value[blockIdx.x] = best;
      a.best_index[blockIdx.x] = best_row;
    }
  }
}
