// Prefill linear: out[m, n] = x[m, k] · weight[n, k]ᵀ + bias, halves in, float32 accumulate, on tensor
// cores; packed weights are dequantized on their way to shared memory, so no unpacked copy exists.
//   epilogue  STORE: float out; ADD: float out += ; SILU, CLAMPED: columns 2j, 2j+1 are gate and up, half
//             out[j] = act(gate, up)
//   grouping  DENSE; EXPERT_IN: row i of expert e is token entries[i] / chosen, result in sorted row i;
//             EXPERT_OUT: row i of x is sorted row i, result · weights[entry] in float row `entry`
// A block makes BM x 128 of out with 8 warps (BM 128: 64 x 32 each; BM 32: 32 x 16), 64 of k a step: x by
// cp.async in three stages; weights through registers, AHEAD steps early, to two stages. Every sum runs
// over k in order, whatever m and BM are. Grid: x over m (experts: over their parts of BM), y over n.
#include "gemm.cuh"

constexpr int BN = 128, BK = 64, A_STAGES = 3, B_BYTES = BN * BK * 2;

template <int T, int EPILOGUE, int GROUPING, int BM>
INLINE void gemm(const GemmArgs& a) {
  extern __shared__ __align__(128) u8 shared[];
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  constexpr int A_BYTES = BM * BK * 2, WM = BM == 128 ? 64 : 32, WN = BM == 128 ? 32 : 16, MI = WM / 16, NI = WN / 8;
  constexpr int AHEAD = BM == 128 ? 1 : GROUPING == DENSE ? 4 : 2, COPIES = BM / 32;
  const int warp_m = BM == 128 ? (warp & 1) * 64 : 0, warp_n = (BM == 128 ? warp >> 1 : warp) * WN;
  Part part;
  if (!find_part<GROUPING, BM>(a, (int*)shared, part)) return;
  const Columns columns = columns_of<EPILOGUE, GROUPING, BN>(a, part.expert);
  const int row_begin = part.row_begin, row_end = part.row_end, column_begin = columns.begin, n = columns.n, steps = (a.k + BK - 1) / BK;

  const u16* sources[COPIES];
  bool source_valid[COPIES];
#pragma unroll
  for (int i = 0; i < COPIES; i++) {
    int row = row_begin + (thread >> 3) + 32 * i;
    source_valid[i] = row < row_end;
    row = source_valid[i] ? row : row_begin;
    if (GROUPING == EXPERT_IN) row = __ldg(a.entries + row) / a.chosen;
    sources[i] = a.x + (u64)row * a.k + (thread & 7) * 8;
  }
  auto fetch_x = [&](int step) {
    if (step < steps) {
      u8* stage = shared + (step % A_STAGES) * A_BYTES;
      const bool inside = step * BK + (thread & 7) * 8 < a.k;
#pragma unroll
      for (int i = 0; i < COPIES; i++)
        copy16(stage + swizzled((thread >> 3) + 32 * i, thread & 7), inside ? sources[i] + step * BK : a.x, source_valid[i] && inside);
    }
    copy_commit();
  };
  const int weight_row = thread >> 1, weight_block = thread & 1, weight_n = column_begin + weight_row;
  const u8* tile = columns.tiles + (u64)(weight_n / a.tile_rows) * tile_bytes(T, a.tile_rows, a.k);
  const int tile_slot = weight_n % a.tile_rows;
  RawBlock raws[AHEAD];
  auto fetch_weights = [&](int step, RawBlock& raw) {
    const int block = step * 2 + weight_block;
    if (weight_n < n && block * 32 < a.k) raw = load_block<T>(tile, a.tile_rows, a.k, tile_slot, block);
  };
  auto store_weights = [&](int step, const RawBlock& raw) {
    u32 half[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    if (weight_n < n && (step * 2 + weight_block) * 32 < a.k) dequantize_half<T>(raw, half);
    u8* stage = shared + A_STAGES * A_BYTES + (step & 1) * B_BYTES;
#pragma unroll
    for (int i = 0; i < 4; i++)
      *(uint4*)(stage + swizzled(weight_row, weight_block * 4 + i)) = make_uint4(half[4 * i], half[4 * i + 1], half[4 * i + 2], half[4 * i + 3]);
  };

  float acc[MI][NI][4];
#pragma unroll
  for (int i = 0; i < MI; i++)
#pragma unroll
    for (int j = 0; j < NI; j++)
#pragma unroll
      for (int c = 0; c < 4; c++) acc[i][j][c] = 0;

  // raws[s % AHEAD] holds the blocks of step s, from when step s - AHEAD is stored until s is
  fetch_weights(0, raws[0]);
  fetch_x(0);
  fetch_x(1);
  store_weights(0, raws[0]);
#pragma unroll
  for (int s = 1; s < AHEAD; s++) fetch_weights(s, raws[s]);
  if (AHEAD > 1) fetch_weights(AHEAD, raws[0]);
  copy_wait<1>();
  __syncthreads();
  auto advance = [&](int step, RawBlock& raw) {
    if (AHEAD == 1) fetch_weights(step + 1, raw);
    fetch_x(step + 2);
    const u32 stage_a = shared_address(shared + (step % A_STAGES) * A_BYTES);
    const u32 stage_b = shared_address(shared + A_STAGES * A_BYTES + (step & 1) * B_BYTES);
#pragma unroll
    for (int kk = 0; kk < BK / 16; kk++) {
      u32 fa[MI][4], fb[NI / 2][4];
#pragma unroll
      for (int i = 0; i < MI; i++) load_matrix4(fa[i], stage_a + swizzled(warp_m + i * 16 + (lane & 15), kk * 2 + (lane >> 4)));
#pragma unroll
      for (int j = 0; j < NI / 2; j++) load_matrix4(fb[j], stage_b + swizzled(warp_n + j * 16 + (lane & 7) + ((lane >> 4) << 3), kk * 2 + (lane >> 3 & 1)));
#pragma unroll
      for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < NI; j++) mma16816(acc[i][j], fa[i], fb[j >> 1][(j & 1) * 2], fb[j >> 1][(j & 1) * 2 + 1]);
    }
    if (step + 1 < steps) store_weights(step + 1, raw);
    if (AHEAD > 1) fetch_weights(step + 1 + AHEAD, raw);
    copy_wait<1>();
    __syncthreads();
  };
  for (int step = 0; step < steps; step += AHEAD)
#pragma unroll
    for (int s = 0; s < AHEAD; s++)
      if (step + s < steps) advance(step + s, raws[(s + 1) % AHEAD]);

  const float* bias = columns.bias;
#pragma unroll
  for (int i = 0; i < MI; i++)
#pragma unroll
    for (int upper = 0; upper < 2; upper++) {
      const int sorted = row_begin + warp_m + i * 16 + (lane >> 2) + upper * 8;
      if (sorted >= row_end) continue;
      int row = sorted;
      float weight = 1.f;
      if (GROUPING == EXPERT_OUT) row = __ldg(a.entries + sorted), weight = __ldg(a.routing + row);
#pragma unroll
      for (int j = 0; j < NI; j++) {
        const int column = column_begin + warp_n + j * 8 + 2 * (lane & 3);
        float v0 = acc[i][j][upper * 2], v1 = acc[i][j][upper * 2 + 1];
        if (bias) {
          if (column < n) v0 += __ldg(bias + column);
          if (column + 1 < n) v1 += __ldg(bias + column + 1);
        }
        if (EPILOGUE == SILU || EPILOGUE == CLAMPED) {
          if (column < n) a.half_out[(u64)row * columns.out_stride + column / 2] = float_to_half(gated<EPILOGUE>(v0, v1));
        } else {
          float* out = columns.out + (u64)row * columns.out_stride + column;
          if (GROUPING == EXPERT_OUT) v0 *= weight, v1 *= weight;
          if (column < n) out[0] = EPILOGUE == ADD ? out[0] + v0 : v0;
          if (column + 1 < n) out[1] = EPILOGUE == ADD ? out[1] + v1 : v1;
        }
      }
    }
}
