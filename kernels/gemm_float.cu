// Linear over float32, float16 or bfloat16 weights (routers, small exact models): plain float32.
//   out[m, n] (+)= x[m, k] · weight[n, k]ᵀ + bias
// gemm_float:   a block makes 64 x 64 of out, a thread 4 x 4, 16 of k a step. Grid: x over m, y over n.
// router_float: few float32 rows of weights; a block four rows of x, a warp every (8 · grid y)-th weight row.
#include "tile.cuh"

struct GemmFloatArgs {
  const float* x;
  const u8* tiles;
  float* out;
  const float* bias;
  int m, n, k, padded_k, tile_rows, x_stride, out_stride, add;
};

template <int T>
INLINE float weight_at(const GemmFloatArgs& a, int row, int i) {
  if (row >= a.n || i >= a.k) return 0.f;
  const u8* tile = a.tiles + (u64)(row / a.tile_rows) * tile_bytes(T, a.tile_rows, a.padded_k);
  const u8* values = tile + (row % a.tile_rows) * quant_bytes(T, a.padded_k);
  if (T == F32) return __ldg((const float*)values + i);
  const u32 v = __ldg((const u16*)values + i);
  return T == F16 ? half_to_float(v) : bfloat_to_float(v);
}

template <int T>
INLINE void gemm_float(const GemmFloatArgs& a) {
  __shared__ float xs[16][68], ws[16][68];
  const int thread = threadIdx.x, tx = thread & 15, ty = thread >> 4;
  const int m0 = blockIdx.x * 64, n0 = blockIdx.y * 64;
  float acc[4][4] = {};
  for (int k0 = 0; k0 < a.k; k0 += 16) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = ty + 16 * i, kk = tx;
      xs[kk][row] = m0 + row < a.m && k0 + kk < a.k ? a.x[(u64)(m0 + row) * a.x_stride + k0 + kk] : 0.f;
      ws[kk][row] = weight_at<T>(a, n0 + row, k0 + kk);
    }
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < 16; kk++)
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] += xs[kk][ty * 4 + i] * ws[kk][tx * 4 + j];
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int row = m0 + ty * 4 + i, column = n0 + tx * 4 + j;
      if (row >= a.m || column >= a.n) continue;
      float* out = a.out + (u64)row * a.out_stride + column;
      const float v = acc[i][j] + (a.bias ? __ldg(a.bias + column) : 0.f);
      *out = a.add ? *out + v : v;
    }
}

ENTRY __launch_bounds__(256) router_float(const __grid_constant__ GemmFloatArgs a) {
  constexpr int ROWS = 4;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, m0 = blockIdx.x * ROWS;
  const float4* x[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) x[r] = (const float4*)(a.x + (u64)min(m0 + r, a.m - 1) * a.x_stride);
  for (int row = blockIdx.y * 8 + warp; row < a.n; row += 8 * gridDim.y) {
    const u8* tile = a.tiles + (u64)(row / a.tile_rows) * tile_bytes(F32, a.tile_rows, a.padded_k);
    const float4* weights = (const float4*)(tile + (row % a.tile_rows) * quant_bytes(F32, a.padded_k));
    float acc[ROWS] = {};
#pragma unroll 4
    for (int c = lane; c < a.k / 4; c += 32) {
      const float4 w = __ldg(weights + c);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const float4 v = x[r][c];
        acc[r] += w.x * v.x + w.y * v.y + w.z * v.z + w.w * v.w;
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const float v = warp_sum(acc[r]) + (a.bias ? __ldg(a.bias + row) : 0.f);
      float* out = a.out + (u64)(m0 + r) * a.out_stride + row;
      if (lane == 0 && m0 + r < a.m) *out = a.add ? *out + v : v;
    }
  }
}

ENTRY __launch_bounds__(256) gemm_float_F32(const __grid_constant__ GemmFloatArgs a) { gemm_float<F32>(a); }
ENTRY __launch_bounds__(256) gemm_float_F16(const __grid_constant__ GemmFloatArgs a) { gemm_float<F16>(a); }
ENTRY __launch_bounds__(256) gemm_float_BF16(const __grid_constant__ GemmFloatArgs a) { gemm_float<BF16>(a); }
