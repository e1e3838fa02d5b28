// What the two kernels of prefill linears share: arguments, epilogues, grouping by expert.
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

template <int EPILOGUE>
INLINE float gated(float gate, float up) {
  if (EPILOGUE == SILU) return gate / (1.f + __expf(-gate)) * up;
  gate = fminf(gate, 7.f);
  up = fminf(fmaxf(up, -7.f), 7.f);
  return gate / (1.f + __expf(-1.702f * gate)) * (up + 1.f);
}
