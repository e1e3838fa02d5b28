// Sampling of the next token from logits on the device, in the order repetition penalty, temperature,
// top-k, top-p, min-p, draw. Weights exp((logit - max) / temperature) are summed as 40-bit fixed point,
// so sums do not depend on their order. The draw is Philox4x32-10 keyed by (seed, token index), 53 bits;
// the token is the first id, ascending, whose cumulative weight exceeds draw · total.
//   mark_seen: note token ids for the repetition penalty.
//   sample_mass: weight of each of n_best slabs of consecutive ids, for draws without top-k and top-p. A
//                block a slab; does nothing for other requests.
//   sample:      one block of 1024 threads: strided over ids for counts, a run of consecutive ids each
//                (of the slab drawn, where slabs were weighed) for the draw.
#include "device.cuh"

struct SampleParameters {
  u32 seed_low, seed_high;
  float temperature, top_p, min_p, penalty;
  int top_k;
};
struct SampleState {
  int token, position, index;   // position of `token`; index of the next draw
};

struct SampleArgs {
  const float* logits;          // [vocab]
  const float* best_value;      // [n_best], argmax by block
  const int* best_index;
  u32* seen;                    // bit set of token ids
  const SampleParameters* parameters;
  SampleState* state;
  const int* ids;               // mark_seen
  u64* slab_mass;               // [n_best]
  int vocab, n_best, n_ids;
};

constexpr int THREADS = 1024, WARPS = 32;
constexpr float FIXED_POINT = 1099511627776.f;  // 2^40

INLINE u32 sortable(float v) {
  const u32 bits = __float_as_uint(v);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
INLINE float unsortable(u32 key) { return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu)); }

INLINE u64 philox_53_bits(u32 seed_low, u32 seed_high, u32 index) {
  u32 c0 = index, c1 = 0, c2 = 0, c3 = 0, k0 = seed_low, k1 = seed_high;
  for (int round = 0; round < 10; round++) {
    const u64 first = (u64)c0 * 0xD2511F53u, second = (u64)c2 * 0xCD9E8D57u;
    c0 = (u32)(second >> 32) ^ c1 ^ k0;
    c1 = (u32)second;
    c2 = (u32)(first >> 32) ^ c3 ^ k1;
    c3 = (u32)first;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return ((u64)c1 << 32 | c0) >> 11;
}

struct Choice {
  const SampleArgs& a;
  SampleParameters p;
  float top;            // largest logit
  u32 edge_key;         // kept: key > edge_key, or equal with id <= edge_id
  int edge_id;
  float least_weight;

  INLINE float logit(int id) const {
    const float v = __ldcg(a.logits + id);
    if (p.penalty == 1.f || !(__ldcg(a.seen + (id >> 5)) >> (id & 31) & 1)) return v;
    return v > 0 ? v / p.penalty : v * p.penalty;
  }
  INLINE float weight(float logit) const { return expf((logit - top) / p.temperature); }
  INLINE bool kept(u32 key, int id) const { return key > edge_key || (key == edge_key && id <= edge_id); }
  // Fixed-point weight of an id, 0 if it was cut.
  INLINE u64 mass(int id) const {
    const float v = logit(id);
    if (!kept(sortable(v), id)) return 0;
    const float w = weight(v);
    return w >= least_weight ? (u64)(w * FIXED_POINT) : 0;
  }
};

// Inclusive prefix sum over the block; `total` is the same for every thread.
INLINE u64 block_scan(u64 v, u64* scratch, u64* total) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    const u64 other = __shfl_up_sync(~0u, v, o);
    if (lane >= o) v += other;
  }
  __syncthreads();
  if (lane == 31) scratch[warp] = v;
  __syncthreads();
  u64 before = 0, all = 0;
  for (int w = 0; w < WARPS; w++) {
    if (w < warp) before += scratch[w];
    all += scratch[w];
  }
  *total = all;
  return before + v;
}

// The id of the `wanted`-th (from 1) id with this key, ids ascending.
INLINE int nth_equal(const Choice& c, u32 key, u64 wanted, u64* scratch, int* found) {
  const int per = (c.a.vocab + THREADS - 1) / THREADS, begin = threadIdx.x * per, end = min(begin + per, c.a.vocab);
  u64 mine = 0, total;
  for (int id = begin; id < end; id++) mine += sortable(c.logit(id)) == key && c.kept(key, id);
  const u64 upto = block_scan(mine, scratch, &total);
  __syncthreads();
  if (threadIdx.x == 0) *found = c.a.vocab;
  __syncthreads();
  u64 count = upto - mine;
  if (count < wanted && wanted <= upto)
    for (int id = begin; id < end; id++)
      if (sortable(c.logit(id)) == key && c.kept(key, id) && ++count == wanted) *found = id;
  __syncthreads();
  return *found;
}

// Narrow the kept set to the largest logits whose amounts first reach `wanted`: counts (top-k) or
// weights (top-p). Radix selection on the sortable key, a byte at a time.
template <bool COUNT>
INLINE void cut(Choice& c, u64 wanted, u64* bins, u64* scratch, int* found) {
  u32 prefix = 0, mask = 0;
  u64 above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    __syncthreads();
    if (threadIdx.x < 256) bins[threadIdx.x] = 0;
    __syncthreads();
    for (int id = threadIdx.x; id < c.a.vocab; id += THREADS) {
      const float v = c.logit(id);
      const u32 key = sortable(v);
      if ((key & mask) == prefix && c.kept(key, id)) atomicAdd(bins + (key >> shift & 255), COUNT ? 1ull : (u64)(c.weight(v) * FIXED_POINT));
    }
    __syncthreads();
    int digit = 255;
    while (digit > 0 && above + bins[digit] < wanted) above += bins[digit--];
    prefix |= (u32)digit << shift;
    mask |= 255u << shift;
  }
  u64 need = wanted > above ? wanted - above : 1;
  if (!COUNT) {
    const u64 one = (u64)(c.weight(unsortable(prefix)) * FIXED_POINT);
    need = one ? (need + one - 1) / one : 1;
  }
  const int last = nth_equal(c, prefix, need, scratch, found);
  c.edge_key = prefix;
  c.edge_id = last;
}

INLINE void best_of(float& value, int& id, float other, int other_id) {
  if (other > value || (other == value && other_id < id)) value = other, id = other_id;
}

// Largest value, lowest id among equals, over the block.
INLINE void block_best(float& value, int& id, u64* scratch) {
#pragma unroll
  for (int o = 16; o; o >>= 1) best_of(value, id, __shfl_xor_sync(~0u, value, o), __shfl_xor_sync(~0u, id, o));
  __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = (u64)__float_as_uint(value) << 32 | (u32)id;
  __syncthreads();
  for (int w = 0; w < WARPS; w++) best_of(value, id, __uint_as_float((u32)(scratch[w] >> 32)), (int)(u32)scratch[w]);
  __syncthreads();
}

INLINE bool weighs_slabs(const SampleParameters& p) { return p.temperature > 0.f && p.top_k <= 0 && p.top_p >= 1.f && p.penalty == 1.f; }
INLINE int slab_size(const SampleArgs& a) { return (a.vocab + a.n_best - 1) / a.n_best; }

// First the slab, then the id in it: the same id as one cumulative sum over all would give.
INLINE int draw_by_slab(Choice& c, u64 random, u64* scratch, int* found) {
  const int slab = threadIdx.x, size = slab_size(c.a);
  u64 mine = slab < c.a.n_best ? __ldcg(c.a.slab_mass + slab) : 0, total, slab_total;
  u64 upto = block_scan(mine, scratch, &total);
  const u64 target = __umul64hi(random << 11, total);
  __shared__ u64 before;
  __shared__ int chosen;
  if (threadIdx.x == 0) before = 0, chosen = 0;
  __syncthreads();
  if (upto - mine <= target && target < upto) before = upto - mine, chosen = slab;
  __syncthreads();
  for (int base = chosen * size; base < min((chosen + 1) * size, c.a.vocab); base += THREADS) {
    const int id = base + threadIdx.x;
    mine = id < min((chosen + 1) * size, c.a.vocab) ? c.mass(id) : 0;
    upto = before + block_scan(mine, scratch, &slab_total);
    if (upto - mine <= target && target < upto) *found = id;
    __syncthreads();
    if (threadIdx.x == 0) before += slab_total;
    __syncthreads();
  }
  return *found;
}

INLINE int draw(Choice& c, u64 random, u64* bins, u64* scratch, int* found) {
  if (c.p.top_k > 0 && c.p.top_k < c.a.vocab) cut<true>(c, c.p.top_k, bins, scratch, found);
  const int per = (c.a.vocab + THREADS - 1) / THREADS, begin = threadIdx.x * per, end = min(begin + per, c.a.vocab);
  u64 mine = 0, total;
  c.least_weight = 0.f;
  if (c.p.top_p < 1.f) {
    for (int id = threadIdx.x; id < c.a.vocab; id += THREADS) mine += c.mass(id);
    block_scan(mine, scratch, &total);
    cut<false>(c, max((u64)((double)c.p.top_p * (double)total), 1ull), bins, scratch, found);
  }
  c.least_weight = c.p.min_p;
  mine = 0;
  for (int id = begin; id < end; id++) mine += c.mass(id);
  const u64 upto = block_scan(mine, scratch, &total);
  const u64 target = __umul64hi(random << 11, total);
  __syncthreads();
  if (upto - mine <= target && target < upto) {
    u64 sum = upto - mine;
    int id = begin;
    while ((sum += c.mass(id)) <= target) id++;
    *found = id;
  }
  __syncthreads();
  return *found;
}

ENTRY __launch_bounds__(256) sample_mass(const __grid_constant__ SampleArgs a) {
  __shared__ u64 sums[8];
  __shared__ float top;
  const SampleParameters p = *a.parameters;
  wait_for_previous_kernel();
  release_next_kernel();
  if (!weighs_slabs(p)) return;
  if (threadIdx.x < 32) {
    float value = NEGATIVE_INFINITY;
    for (int i = threadIdx.x; i < a.n_best; i += 32) value = fmaxf(value, __ldcg(a.best_value + i));
    value = warp_max(value);
    if (threadIdx.x == 0) top = value;
  }
  __syncthreads();
  const Choice choice{a, p, top, 0, a.vocab, p.min_p};
  const int size = slab_size(a), end = min((int)(blockIdx.x + 1) * size, a.vocab);
  u64 mine = 0;
  for (int id = blockIdx.x * size + threadIdx.x; id < end; id += 256) mine += choice.mass(id);
#pragma unroll
  for (int o = 16; o; o >>= 1) mine += __shfl_xor_sync(~0u, mine, o);
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < 8; w++) mine += sums[w];
    a.slab_mass[blockIdx.x] = mine;
  }
}

ENTRY __launch_bounds__(1024) sample(const __grid_constant__ SampleArgs a) {
  __shared__ u64 bins[256], scratch[WARPS];
  __shared__ int found;
  const SampleParameters p = *a.parameters;
  const SampleState state = *a.state;
  wait_for_previous_kernel();
  release_next_kernel();
  float value = NEGATIVE_INFINITY;
  int id = 0x7fffffff;
  Choice choice{a, p, 0.f, 0, a.vocab, 0.f};
  if (p.penalty == 1.f) {
    for (int i = threadIdx.x; i < a.n_best; i += THREADS) best_of(value, id, __ldcg(a.best_value + i), __ldcg(a.best_index + i));
  } else {
    for (int i = threadIdx.x; i < a.vocab; i += THREADS) best_of(value, id, choice.logit(i), i);
  }
  block_best(value, id, scratch);
  if (p.temperature > 0.f) {
    choice.top = value;
    if (threadIdx.x == 0) found = id;
    __syncthreads();
    choice.least_weight = p.min_p;
    const u64 random = philox_53_bits(p.seed_low, p.seed_high, state.index);
    id = weighs_slabs(p) && a.n_best <= THREADS ? draw_by_slab(choice, random, scratch, &found) : draw(choice, random, bins, scratch, &found);
  }
  if (threadIdx.x == 0) {
    id = min(max(id, 0), a.vocab - 1);
    a.seen[id >> 5] |= 1u << (id & 31);
    a.state->token = id;
    a.state->position = state.position + 1;
    a.state->index = state.index + 1;
  }
}

ENTRY mark_seen(const __grid_constant__ SampleArgs a) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= a.n_ids) return;
  const int id = min(max(a.ids[i], 0), a.vocab - 1);
  atomicOr(a.seen + (id >> 5), 1u << (id & 31));
}
