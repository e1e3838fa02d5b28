// Mixture of experts around the grouped linears of gemm.cu, for a chunk of tokens:
//   moe_route:   the `chosen` best of each token's router logits (lower expert first among equals) and the
//                softmax over them. A warp a token.
//   moe_group:   sorted list of entries (token · chosen + choice) of each expert. A block an expert.
//   moe_combine: x[t] += Σ over choices, in order, of y[t · chosen + choice]. Grid: columns, tokens.
#include "device.cuh"

struct MoeArgs {
  const float* logits;    // [tokens, n_experts]
  int* experts;           // [tokens · chosen]
  float* routing;         // [tokens · chosen]
  int* entries;           // [tokens · chosen], sorted by expert
  int* first_row;         // [n_experts + 1]
  const float* y;         // [tokens · chosen, width]
  float* x;               // [tokens, width], x_stride apart
  int tokens, n_experts, chosen, width, x_stride, add;
};

ENTRY __launch_bounds__(128) moe_route(const __grid_constant__ MoeArgs a) {
  const int token = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (token >= a.tokens) return;
  float logit[8];
#pragma unroll
  for (int i = 0; i < 8; i++) logit[i] = lane + 32 * i < a.n_experts ? a.logits[(u64)token * a.n_experts + lane + 32 * i] : -INFINITY;
  float value = 0, first = 0, total = 0;
  int expert = 0;
  for (int c = 0; c < a.chosen; c++) {
    float best = -INFINITY;
    int at = 0x7fffffff;
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (logit[i] > best) best = logit[i], at = lane + 32 * i;
#pragma unroll
    for (int o = 16; o; o >>= 1) {
      const float v = __shfl_xor_sync(~0u, best, o);
      const int index = __shfl_xor_sync(~0u, at, o);
      if (v > best || (v == best && index < at)) best = v, at = index;
    }
    if (c == 0) first = best;
    if (lane == c) value = __expf(best - first), expert = at;
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (lane + 32 * i == at) logit[i] = -INFINITY;
  }
  for (int c = a.chosen - 1; c >= 0; c--) total += __shfl_sync(~0u, value, c);
  if (lane < a.chosen) a.experts[token * a.chosen + lane] = expert, a.routing[token * a.chosen + lane] = value / total;
}

ENTRY __launch_bounds__(1024) moe_group(const __grid_constant__ MoeArgs a) {
  __shared__ int counts[32];
  const int expert = blockIdx.x, n = a.tokens * a.chosen, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int below = 0;
  for (int i = threadIdx.x; i < n; i += 1024) below += a.experts[i] < expert;
  below = __reduce_add_sync(~0u, below);
  if (lane == 0) counts[warp] = below;
  __syncthreads();
  int at = 0;
  for (int w = 0; w < 32; w++) at += counts[w];
  if (threadIdx.x == 0) a.first_row[expert] = at;
  for (int base = 0; base < n; base += 1024) {
    const int i = base + threadIdx.x;
    const bool mine = i < n && a.experts[i] == expert;
    const u32 votes = __ballot_sync(~0u, mine);
    __syncthreads();
    if (lane == 0) counts[warp] = __popc(votes);
    __syncthreads();
    int before = 0, all = 0;
    for (int w = 0; w < 32; w++) {
      if (w < warp) before += counts[w];
      all += counts[w];
    }
    if (mine) a.entries[at + before + __popc(votes & ((1u << lane) - 1))] = i;
    at += all;
  }
  if (expert == a.n_experts - 1 && threadIdx.x == 0) a.first_row[a.n_experts] = at;
}

ENTRY __launch_bounds__(256) moe_combine(const __grid_constant__ MoeArgs a) {
  const int column = blockIdx.x * 256 + threadIdx.x, token = blockIdx.y;
  if (column >= a.width) return;
  float* x = a.x + (u64)token * a.x_stride + column;
  float sum = a.add ? *x : 0.f;
  for (int c = 0; c < a.chosen; c++) sum += a.y[((u64)token * a.chosen + c) * a.width + column];
  *x = sum;
}
