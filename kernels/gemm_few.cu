// Prefill linear over few rows (a prompt of under 64 tokens), as gemm.cu: same arguments,
// epilogues and grouping, but bound by reading the weights once: out[m, n] = x[m, k] · weight[n, k]ᵀ + bias.
// Work is cut into jobs: 16 weight rows for a part of N rows of x (of one expert). A block takes a run of
// neighbouring jobs: whole groups of 16 packed rows arrive by bulk copies in a ring of `slots`; x stays in
// shared memory until the part changes. Of a job's k, warp w takes every eighth run of 128 weights: a lane
// dequantizes one block of 32 of rows lane / 4 and lane / 4 + 8 straight into tensor-core registers (16
// weight rows x 8 rows of x; the order of k within the run is the lanes'). The eight warps' sums are added
// in order by other warps than those of the next job. A result depends on its own row of x alone.
#include "barrier.cuh"
#include "gemm.cuh"

constexpr int WARPS = 8, GROUP = 16;

struct Job {
  int expert, row_begin, group;
};

INLINE void wait_for_bytes(u32 barrier, u32 parity) {
#if HAS_BULK_COPY
  barrier_wait(barrier, parity);
#else
  copy_wait<0>();
  __syncthreads();
#endif
}

template <int T, int EPILOGUE, int GROUPING, int N>
INLINE void gemm_few(const GemmArgs& a) {
  constexpr int PARTIAL = GROUP * N;
  extern __shared__ __align__(128) u8 shared[];
  __shared__ int first_row[MAX_EXPERTS + 1];
  __shared__ __align__(8) u64 barriers[8];
  __shared__ float partial[2][WARPS][PARTIAL];
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, g = lane >> 2, j = lane & 3;
  const int blocks = a.k / 32, runs = (blocks + 3) / 4, x_stride = runs * 256 + 32;
  const int tile = tile_bytes(T, a.tile_rows, a.k), tiles_a_group = GROUP / a.tile_rows, slot_bytes = tile * tiles_a_group;
  const int n_experts = GROUPING == DENSE ? 1 : a.n_experts, groups = a.column_blocks[2];
  u8* ring = shared + N * x_stride;

  if (GROUPING == DENSE) {
    if (thread < 2) first_row[thread] = thread * a.m;
  } else {
    for (int e = thread; e <= n_experts; e += WARPS * 32) first_row[e] = __ldcg(a.first_row + e);
  }
#if HAS_BULK_COPY
  if (thread < a.slots) barrier_init(shared_address(barriers + thread), 1);
  fence_for_async();
#endif
  __syncthreads();
  int parts = 0;
  for (int e = 0; e < n_experts; e++) parts += (first_row[e + 1] - first_row[e] + N - 1) / N;
  const int begin = (int)((u64)blockIdx.x * parts * groups / gridDim.x), end = (int)((u64)(blockIdx.x + 1) * parts * groups / gridDim.x);
  if (begin == end) return;

  auto skip_empty = [&](Job& job) {
    while (job.expert < n_experts && job.row_begin >= first_row[job.expert + 1]) {
      job.expert++;
      job.row_begin = first_row[job.expert];
    }
  };
  auto advance = [&](Job& job) {
    if (++job.group < groups) return;
    job.group = 0, job.row_begin += N;
    skip_empty(job);
  };
  Job current = {0, 0, begin % groups};
  int part = begin / groups;
  for (; current.expert < n_experts; current.expert++) {
    const int here = (first_row[current.expert + 1] - first_row[current.expert] + N - 1) / N;
    if (part < here) break;
    part -= here;
  }
  current.row_begin = first_row[current.expert] + part * N;

  auto fetch = [&](const Job& job, int slot) {
    const int segment = job.group < a.column_blocks[0] ? 0 : job.group < a.column_blocks[1] ? 1 : 2;
    const int group = job.group - (segment == 0 ? 0 : segment == 1 ? a.column_blocks[0] : a.column_blocks[1]);
    const int n = segment == 0 ? a.columns[0] : segment == 1 ? a.columns[1] : a.columns[2];
    const int tiles = min(tiles_a_group, (n + a.tile_rows - 1) / a.tile_rows - group * tiles_a_group);
    const u8* from = (segment == 0 ? a.tiles[0] : segment == 1 ? a.tiles[1] : a.tiles[2]) + (u64)job.expert * a.expert_bytes + (u64)group * slot_bytes;
    u8* to = ring + slot * slot_bytes;
#if HAS_BULK_COPY
    if (thread == 0) {
      const u32 barrier = shared_address(barriers + slot), bytes = tiles * tile;
      barrier_expect(barrier, bytes);
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(barrier)
                   : "memory");
    }
#else
    for (int b = thread * 16; b < tiles * tile; b += WARPS * 32 * 16) copy16(to + b, from + b, true);
    copy_commit();
#endif
  };
  auto stage_x = [&](const Job& job) {
    const int row_end = min(job.row_begin + N, first_row[job.expert + 1]);
    for (int i = thread; i < N * runs * 16; i += WARPS * 32) {
      const int n = i / (runs * 16), chunk = i % (runs * 16), block = chunk >> 2;
      int row = job.row_begin + n;
      const bool valid = row < row_end && chunk * 8 < a.k;
      if (!valid) row = job.row_begin;
      if (GROUPING == EXPERT_IN) row = __ldg(a.entries + row) / a.chosen;
      copy16(shared + n * x_stride + block * 64 + ((chunk & 3) ^ (block >> 1 & 1)) * 16, a.x + (u64)row * a.k + (valid ? chunk * 8 : 0), valid);
    }
    copy_commit();
    copy_wait<0>();
    __syncthreads();
  };

  Job ahead = current;
  int fetched = begin;
  for (int s = 0; s < a.slots && fetched < end; s++, fetched++) {
    fetch(ahead, s);
    advance(ahead);
  }
  stage_x(current);
  const u8* row_tile[2] = {ring + g / a.tile_rows * tile, ring + (g + 8) / a.tile_rows * tile};
  const int row_slot = g % a.tile_rows;  // tile heights divide 8
  const u8* x_row = shared + g * x_stride + j * 64;

  int slot = 0;
  u32 parity = 0;
  for (int n = 0, job = begin; job < end; job++, n++) {
    wait_for_bytes(shared_address(barriers + slot), parity);
    float acc[N / 8][4];
#pragma unroll
    for (int t = 0; t < N / 8; t++)
#pragma unroll
      for (int c = 0; c < 4; c++) acc[t][c] = 0;
    for (int run = warp; run < runs; run += WARPS) {
      u32 weights[2][16];
      const int block = run * 4 + j;
#pragma unroll
      for (int r = 0; r < 2; r++) {
        if (block < blocks) dequantize_half<T>(load_block<T, SharedReader>(row_tile[r] + slot * slot_bytes, a.tile_rows, a.k, row_slot, block), weights[r]);
        else
#pragma unroll
          for (int i = 0; i < 16; i++) weights[r][i] = 0;
      }
#pragma unroll
      for (int c = 0; c < 4; c++)
#pragma unroll
        for (int t = 0; t < N / 8; t++) {
          const uint4 x = *(const uint4*)(x_row + t * 8 * x_stride + run * 256 + (c ^ (j >> 1)) * 16);
          const u32 first[4] = {weights[0][4 * c], weights[1][4 * c], weights[0][4 * c + 1], weights[1][4 * c + 1]};
          const u32 second[4] = {weights[0][4 * c + 2], weights[1][4 * c + 2], weights[0][4 * c + 3], weights[1][4 * c + 3]};
          mma16816(acc[t], first, x.x, x.y);
          mma16816(acc[t], second, x.z, x.w);
        }
    }
    float* sums = partial[n & 1][warp];
#pragma unroll
    for (int t = 0; t < N / 8; t++) {
      *(float2*)(sums + g * N + t * 8 + 2 * j) = make_float2(acc[t][0], acc[t][1]);
      *(float2*)(sums + (g + 8) * N + t * 8 + 2 * j) = make_float2(acc[t][2], acc[t][3]);
    }
    __syncthreads();
    if (fetched < end) {
      fetch(ahead, slot);
      advance(ahead);
      fetched++;
    }
    // a thread finishes two neighbouring columns of one row
    const int t = (thread - n % 4 * 64) & (WARPS * 32 - 1);
    if (t < 8 * N) {
      const int pair = t & 7, sorted = current.row_begin + (t >> 3);
      const int segment = current.group < a.column_blocks[0] ? 0 : current.group < a.column_blocks[1] ? 1 : 2;
      const int group = current.group - (segment == 0 ? 0 : segment == 1 ? a.column_blocks[0] : a.column_blocks[1]);
      const int columns = segment == 0 ? a.columns[0] : segment == 1 ? a.columns[1] : a.columns[2], column = group * GROUP + 2 * pair;
      if (sorted < first_row[current.expert + 1] && column < columns) {
        const int out_stride = segment == 0 ? a.out_stride[0] : segment == 1 ? a.out_stride[1] : a.out_stride[2];
        const float* bias = segment == 0 ? a.bias[0] : segment == 1 ? a.bias[1] : a.bias[2];
        const bool both = column + 1 < columns;
        float v0 = 0, v1 = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) v0 += partial[n & 1][w][2 * pair * N + (t >> 3)], v1 += partial[n & 1][w][(2 * pair + 1) * N + (t >> 3)];
        if (bias) v0 += __ldg(bias + (u64)current.expert * columns + column), v1 += both ? __ldg(bias + (u64)current.expert * columns + column + 1) : 0.f;
        int row = sorted;
        if (GROUPING == EXPERT_OUT) {
          row = __ldg(a.entries + sorted);
          const float weight = __ldg(a.routing + row);
          v0 *= weight, v1 *= weight;
        }
        if (EPILOGUE == SILU || EPILOGUE == CLAMPED) {
          a.half_out[(u64)row * out_stride + column / 2] = float_to_half(gated<EPILOGUE>(v0, v1));
        } else {
          float* out = (segment == 0 ? a.out[0] : segment == 1 ? a.out[1] : a.out[2]) + (u64)row * out_stride + column;
          out[0] = EPILOGUE == ADD ? out[0] + v0 : v0;
          if (both) out[1] = EPILOGUE == ADD ? out[1] + v1 : v1;
        }
      }
    }
    const int row_begin = current.row_begin, expert = current.expert;
    advance(current);
    if (job + 1 < end && (current.row_begin != row_begin || current.expert != expert)) stage_x(current);
    if (++slot == a.slots) slot = 0, parity ^= 1;
  }
}
