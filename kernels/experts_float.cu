// Linears of the chosen experts over float32, float16 or bfloat16 weights (small exact models): plain
// float32, sums in a fixed order.
//   in:  hidden[s, j] = act(gate, up), gate and up rows 2j and 2j+1 of the expert of sorted row s over
//        x[entries[s] / chosen] · weightᵀ + bias
//   out: y[entry, j] = routing[entry] · (hidden[s] · weightᵀ + bias), entry = entries[s]
// A warp makes one column of one sorted row. Grid: x over sorted rows, y over columns, eight a block.
#include "tile.cuh"

struct ExpertsFloatArgs {
  const float* x;
  const u8* tiles;        // [n_experts], expert_bytes apart
  float* out;
  const float* bias;      // [n_experts, n]
  const int* entries;     // entry (token · chosen + choice) of each sorted row
  const int* first_row;   // [n_experts + 1] first sorted row of each
  const float* routing;   // weight of each entry
  u64 expert_bytes;
  int n, k, padded_k, tile_rows, n_experts, chosen;
};

enum Output { SILU, CLAMPED, WEIGHTED };

template <int T>
INLINE float value_at(const u8* values, int i) {
  if (T == F32) return __ldg((const float*)values + i);
  const u32 v = __ldg((const u16*)values + i);
  return T == F16 ? half_to_float(v) : bfloat_to_float(v);
}

// Row `row` of an expert over x, plus its bias; every lane gets the sum.
template <int T>
INLINE float row_over(const ExpertsFloatArgs& a, const float* x, int expert, int row) {
  const u8* tiles = a.tiles + (u64)expert * a.expert_bytes;
  const u8* tile = tiles + (u64)(row / a.tile_rows) * tile_bytes(T, a.tile_rows, a.padded_k);
  const u8* values = tile + (row % a.tile_rows) * quant_bytes(T, a.padded_k);
  float sum = 0;
  for (int i = threadIdx.x & 31; i < a.k; i += 32) sum += __ldcg(x + i) * value_at<T>(values, i);
  return warp_sum(sum) + __ldg(a.bias + (u64)expert * a.n + row);
}

template <int KIND>
INLINE float gated(float gate, float up) {
  if (KIND == SILU) return gate / (1.f + __expf(-gate)) * up;
  gate = fminf(gate, 7.f);
  up = fminf(fmaxf(up, -7.f), 7.f);
  return gate / (1.f + __expf(-1.702f * gate)) * (up + 1.f);
}

template <int T, int KIND>
INLINE void experts(const ExpertsFloatArgs& a) {
  const int sorted = blockIdx.x, column = blockIdx.y * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  const int columns = KIND == WEIGHTED ? a.n : a.n / 2;
  if (column >= columns) return;
  int expert = 0;
  while (expert + 1 < a.n_experts && sorted >= __ldcg(a.first_row + expert + 1)) expert++;
  const int entry = __ldcg(a.entries + sorted);
  const float* x = a.x + (u64)(KIND == WEIGHTED ? sorted : entry / a.chosen) * a.k;
  float v;
  if (KIND == WEIGHTED) {
    v = row_over<T>(a, x, expert, column) * __ldcg(a.routing + entry);
  } else {
    const float gate = row_over<T>(a, x, expert, 2 * column);
    v = gated<KIND>(gate, row_over<T>(a, x, expert, 2 * column + 1));
  }
  if (lane == 0) a.out[(u64)(KIND == WEIGHTED ? entry : sorted) * columns + column] = v;
}

#define EXPERTS(T, KIND) \
  ENTRY __launch_bounds__(256) experts_##T##_##KIND(const __grid_constant__ ExpertsFloatArgs a) { experts<T, KIND>(a); }
EXPERTS(F32, SILU)
EXPERTS(F16, SILU)
EXPERTS(BF16, SILU)
EXPERTS(F32, CLAMPED)
EXPERTS(F16, CLAMPED)
EXPERTS(BF16, CLAMPED)
EXPERTS(F32, WEIGHTED)
EXPERTS(F16, WEIGHTED)
EXPERTS(BF16, WEIGHTED)
