// What the kernels of prefill linears share: arguments, epilogues, grouping by expert.
#pragma once
#include "dequantize.cuh"

enum Epilogue { STORE, ADD, SILU, CLAMPED };
enum Grouping { DENSE, EXPERT_IN, EXPERT_OUT };

struct GemmArgs {
  const u16* x;
  const u8* tiles[3];         // up to three matrices over the same x
  float* out[3];
  const float* bias[3];       // [n], experts [n_experts, n], or null
  u16* half_out;
  const int* entries;         // experts: entry (token · chosen + choice) of each sorted row
  const int* first_row;       // experts: [n_experts + 1] first sorted row of each
  const float* routing;       // EXPERT_OUT: weight of each entry
  u64 expert_bytes;
  int columns[3], out_stride[3], column_blocks[3];  // column_blocks: running count, of 128 or 16 columns
  int m, k, tile_rows, n_experts, chosen, slots;
};

constexpr int MAX_EXPERTS = 256;

// Place of a 16-byte chunk in a tile of rows of 64 halves: eight rows' equal chunks lie in different banks.
INLINE u32 swizzled(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

template <int EPILOGUE>
INLINE float gated(float gate, float up) {
  if (EPILOGUE == SILU) return __fdividef(gate, 1.f + __expf(-gate)) * up;
  gate = fminf(gate, 7.f);
  up = fminf(fmaxf(up, -7.f), 7.f);
  return __fdividef(gate, 1.f + __expf(-1.702f * gate)) * (up + 1.f);
}

// What a block works on: rows of x, all of one expert.
struct Part {
  int row_begin, row_end, expert;
};
// Parts of ROWS rows, expert after expert; false where there is none. `first_row` is room in shared memory.
template <int GROUPING, int ROWS>
INLINE bool find_part(const GemmArgs& a, int* first_row, Part& found) {
  found = {(int)blockIdx.x * ROWS, a.m, 0};
  if constexpr (GROUPING != DENSE) {
    for (int e = threadIdx.x; e <= a.n_experts; e += blockDim.x) first_row[e] = __ldg(a.first_row + e);
    __syncthreads();
    int part = blockIdx.x;
    for (; found.expert < a.n_experts; found.expert++) {
      const int begin = first_row[found.expert], end = first_row[found.expert + 1], parts = (end - begin + ROWS - 1) / ROWS;
      if (part < parts) {
        found.row_begin = begin + part * ROWS, found.row_end = end;
        break;
      }
      part -= parts;
    }
    __syncthreads();
  }
  return GROUPING == DENSE || found.expert < a.n_experts;
}

// Where a block's columns begin in its matrix, and the matrix: rows (n), tiles of the expert, output.
struct Columns {
  const u8* tiles;
  float* out;
  const float* bias;
  int begin, n, out_stride;
  bool aligned;  // four results can be written at once
};
template <int EPILOGUE, int GROUPING, int COLUMNS>
INLINE Columns columns_of(const GemmArgs& a, int expert) {
  const int s = blockIdx.y < a.column_blocks[0] ? 0 : blockIdx.y < a.column_blocks[1] ? 1 : 2;
  const int first = s == 0 ? 0 : s == 1 ? a.column_blocks[0] : a.column_blocks[1];
  Columns c;
  c.begin = (blockIdx.y - first) * COLUMNS;
  c.n = s == 0 ? a.columns[0] : s == 1 ? a.columns[1] : a.columns[2];
  c.tiles = s == 0 ? a.tiles[0] : s == 1 ? a.tiles[1] : a.tiles[2];
  c.out = s == 0 ? a.out[0] : s == 1 ? a.out[1] : a.out[2];
  c.bias = s == 0 ? a.bias[0] : s == 1 ? a.bias[1] : a.bias[2];
  c.out_stride = s == 0 ? a.out_stride[0] : s == 1 ? a.out_stride[1] : a.out_stride[2];
  if (GROUPING != DENSE) {
    c.tiles += (u64)expert * a.expert_bytes;
    if (c.bias) c.bias += (u64)expert * c.n;
  }
  if (EPILOGUE == SILU || EPILOGUE == CLAMPED) c.aligned = !((u64)a.half_out & 3 | c.out_stride & 1);
  else c.aligned = !((u64)c.out & 15 | c.out_stride & 3);
  return c;
}
