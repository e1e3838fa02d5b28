// Prefill linear as gemm.cu (same arguments, epilogues and grouping) by Hopper's warpgroup instructions:
// out[m, n] = x[m, k] · weight[n, k]ᵀ + bias, halves in, float32 accumulate.
// A block makes TOKENS x 128 of out, 64 of k a step, through a ring of stages in shared memory: rows of 64
// halves, whose 16-byte chunks are permuted. Warps 8 … 15 fill it: x by cp.async, and a packed block of 32
// weights or two a thread, asked for a step early, as halves; a stage is handed over LAG steps later, when x
// is there. Warps 0 … 7 are two warpgroups: each multiplies its 64 weight rows by all tokens, m64nTOKENSk16,
// with the next step queued before the last has ended. Results pass through shared memory, so that a warp
// writes 128 columns of a token at once. Every sum runs over k in order: the bits are gemm.cu's, whatever
// TOKENS is.
// Grid: x over m (experts: over their parts of TOKENS), y over n.
#include "gemm.cuh"
#include "warpgroup.cuh"

constexpr int ROWS = 128, STEP = 64, WEIGHT_BYTES = ROWS * STEP * 2, RING_BYTES = 192 << 10, RESULT_STRIDE = ROWS + 4, WARPS = 8;

__host__ __device__ constexpr int filling_warps(int tokens) { return tokens == 256 ? 4 : 8; }

// A barrier of the multiplying warps alone.
INLINE void multipliers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(32 * WARPS) : "memory"); }

template <int EPILOGUE, int GROUPING>
INLINE void write_token(const GemmArgs& a, const Columns& columns, int sorted, int column, float4 v, float4 bias) {
  int row = sorted;
  float weight = 1.f;
  if (GROUPING == EXPERT_OUT) row = __ldg(a.entries + sorted), weight = __ldg(a.routing + row);
  v.x += bias.x, v.y += bias.y, v.z += bias.z, v.w += bias.w;
  const int left = columns.n - column;
  if (EPILOGUE == SILU || EPILOGUE == CLAMPED) {
    u16* out = a.half_out + (u64)row * columns.out_stride + column / 2;
    const u16 first = float_to_half(gated<EPILOGUE>(v.x, v.y)), second = float_to_half(gated<EPILOGUE>(v.z, v.w));
    if (columns.aligned && left >= 4) {
      *(u32*)out = first | (u32)second << 16;
    } else {
      if (left > 0) out[0] = first;
      if (left > 2) out[1] = second;
    }
    return;
  }
  float* out = columns.out + (u64)row * columns.out_stride + column;
  if (GROUPING == EXPERT_OUT) v.x *= weight, v.y *= weight, v.z *= weight, v.w *= weight;
  if (columns.aligned && left >= 4) {
    if (EPILOGUE == ADD) {
      const float4 before = *(const float4*)out;
      v.x = before.x + v.x, v.y = before.y + v.y, v.z = before.z + v.z, v.w = before.w + v.w;
    }
    *(float4*)out = v;
    return;
  }
  const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (i < left) out[i] = EPILOGUE == ADD ? out[i] + values[i] : values[i];
}

// One block of weights: of Q4_K and Q5_K, scales as the whole record of 256 weights in `more`.
template <int T>
INLINE RawBlock load_ahead(const u8* tile, int tile_rows, int k, int row, int block) {
  if constexpr (T == Q4_K || T == Q5_K) {
    RawBlock raw;
    raw.quants = GlobalReader::load16(tile + row * quant_bytes(T, k) + block * block_stride(T));
    const u8* high = tile + tile_rows * quant_bytes(T, k);
    if (T == Q5_K) raw.high.x = __ldg((const u32*)(high + row * high_bytes(T, k)) + block);
    raw.more = __ldg((const uint4*)(high + tile_rows * high_bytes(T, k) + row * scale_bytes(T, k)) + (block >> 3));
    return raw;
  } else {
    return load_block<T>(tile, tile_rows, k, row, block);
  }
}
template <int T>
INLINE void take_scales(RawBlock& raw, int block) {
  if constexpr (T == Q4_K || T == Q5_K) {
    const int j = block & 7;
    raw.scale = raw.more.x;
    raw.scale2 = ((j < 4 ? raw.more.y : raw.more.z) >> (8 * (j & 3)) & 255u) | (raw.more.w >> (4 * j) & 15u) << 8;
  }
}

#if HAS_WARPGROUP
template <int T, int EPILOGUE, int GROUPING, int TOKENS>
INLINE void gemm_warpgroup(const GemmArgs& a) {
  extern __shared__ __align__(1024) u8 shared[];
  constexpr int X_BYTES = TOKENS * STEP * 2, STAGE_BYTES = X_BYTES + WEIGHT_BYTES, STAGES = RING_BYTES / STAGE_BYTES;
  constexpr int FILLERS = filling_warps(TOKENS), COPIES = TOKENS / 4 / FILLERS, BLOCKS = WARPS / FILLERS;
  constexpr int LAG = TOKENS == 256 ? 1 : TOKENS == 128 ? 2 : 3;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, steps = (a.k + STEP - 1) / STEP;
  Part part;
  if (!find_part<GROUPING, TOKENS>(a, (int*)shared, part)) return;
  const Columns columns = columns_of<EPILOGUE, GROUPING, ROWS>(a, part.expert);
  const u32 full = shared_address(shared + RING_BYTES), empty = full + 8 * STAGES;
  if (threadIdx.x < 2 * STAGES) barrier_init(full + 8 * threadIdx.x, threadIdx.x < STAGES ? FILLERS : WARPS);
  __syncthreads();

  if (warp >= WARPS) {
    const int thread = threadIdx.x - 32 * WARPS;
    // past the last row of the weights the last one stands in, past that of x zeros: their results are not written
    const int rows_left = part.row_end - part.row_begin - (thread >> 3);
    u32 sources[COPIES];
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
      const int row = min(part.row_begin + (thread >> 3) + 4 * FILLERS * i, part.row_end - 1);
      sources[i] = (u32)(GROUPING == EXPERT_IN ? __ldg(a.entries + row) / a.chosen : row) * a.k + (thread & 7) * 8;
    }
    auto fetch_x = [&](int step) {
      u8* stage = shared + (step % STAGES) * STAGE_BYTES + swizzled(thread >> 3, thread & 7);
      const bool inside = step * STEP + (thread & 7) * 8 < a.k;
      const int rows = inside ? rows_left : 0;
      const u16* x = a.x + (inside ? step * STEP : 0);
#pragma unroll
      for (int i = 0; i < COPIES; i++) copy16(stage + i * 4 * FILLERS * 128, x + sources[i], 4 * FILLERS * i < rows);
      copy_commit();
    };
    const u8* tiles[BLOCKS];
    int slots[BLOCKS];
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
      const int n = min(columns.begin + (thread >> 1) + 16 * FILLERS * i, columns.n - 1);
      slots[i] = n % a.tile_rows;
      tiles[i] = columns.tiles + (u64)(n / a.tile_rows) * tile_bytes(T, a.tile_rows, a.k);
    }
    RawBlock raws[BLOCKS];
    auto fetch_weights = [&](int step) {
      const int block = step * 2 + (thread & 1);
      if (block * 32 >= a.k) return;
#pragma unroll
      for (int i = 0; i < BLOCKS; i++) raws[i] = load_ahead<T>(tiles[i], a.tile_rows, a.k, slots[i], block);
    };
    auto store_weights = [&](int step) {
      const int block = step * 2 + (thread & 1);
      u8* stage = shared + (step % STAGES) * STAGE_BYTES + X_BYTES;
      u32 half[BLOCKS][16] = {};
      if (block * 32 < a.k) {
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
          take_scales<T>(raws[i], block);
          dequantize_half<T>(raws[i], half[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < BLOCKS; i++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
          const u32* h = half[i] + 4 * c;
          *(uint4*)(stage + swizzled((thread >> 1) + 16 * FILLERS * i, (thread & 1) * 4 + c)) = make_uint4(h[0], h[1], h[2], h[3]);
        }
    };
    auto hand_over = [&](int step) {
      fence_for_async();
      __syncwarp();
      if (lane == 0) barrier_arrive(full + 8 * (step % STAGES));
    };
    fetch_weights(0);
    for (int step = 0; step < steps; step++) {
      if (step >= STAGES) barrier_wait(empty + 8 * (step % STAGES), (step / STAGES - 1) & 1);
      fetch_x(step);
      store_weights(step);
      fetch_weights(step + 1);
      if (step >= LAG) {
        copy_wait<LAG>();
        hand_over(step - LAG);
      }
    }
    copy_wait<0>();
    for (int step = max(steps - LAG, 0); step < steps; step++) hand_over(step);
  } else {
    float sums[TOKENS / 2];
#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) sums[i] = 0;
    for (int step = 0; step < steps; step++) {
      const u8* stage = shared + (step % STAGES) * STAGE_BYTES;
      const u64 tokens_at = matrix_descriptor(shared_address(stage));
      const u64 rows_at = matrix_descriptor(shared_address(stage + X_BYTES + (warp >> 2) * (WEIGHT_BYTES / 2)));
      barrier_wait(full + 8 * (step % STAGES), step / STAGES & 1);
      warpgroup_fence();
#pragma unroll
      for (int i = 0; i < STEP / 16; i++) Warpgroup<TOKENS>::multiply(sums, rows_at + 2 * i, tokens_at + 2 * i);
      warpgroup_commit();
      warpgroup_wait<1>();
      if (step && lane == 0) barrier_arrive(empty + 8 * ((step - 1) % STAGES));
    }
    warpgroup_wait<0>();
    multipliers_sync();
    float* results = (float*)shared;
#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) {
      const int token = i / 4 * 8 + 2 * (lane & 3) + (i & 1), row = warp * 16 + (lane >> 2) + (i & 2) * 4;
      results[token * RESULT_STRIDE + row] = sums[i];
    }
    multipliers_sync();
    const int column = columns.begin + 4 * lane;
    if (column >= columns.n) return;
    float4 bias = make_float4(0, 0, 0, 0);
    if (columns.bias) {
      bias.x = __ldg(columns.bias + column);
      if (column + 1 < columns.n) bias.y = __ldg(columns.bias + column + 1);
      if (column + 2 < columns.n) bias.z = __ldg(columns.bias + column + 2);
      if (column + 3 < columns.n) bias.w = __ldg(columns.bias + column + 3);
    }
#pragma unroll 4
    for (int token = warp; token < TOKENS; token += WARPS)
      if (part.row_begin + token < part.row_end)
        write_token<EPILOGUE, GROUPING>(a, columns, part.row_begin + token, column, *(const float4*)(results + token * RESULT_STRIDE + 4 * lane), bias);
  }
}
#else
template <int T, int EPILOGUE, int GROUPING, int TOKENS>
INLINE void gemm_warpgroup(const GemmArgs& a) {
  __trap();
}
#endif
