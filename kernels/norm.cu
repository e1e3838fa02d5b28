// Row norms, one block of 256 threads a row:
//   rms_norm:   out = x / sqrt(mean(x²) + eps) · weight
//   layer_norm: out = (x - mean) / sqrt(var + eps) · weight + bias
// Either or both of a float and a half output.
#include "device.cuh"

struct NormArgs {
  const float* x;
  const float* weight;
  const float* bias;
  float* out;       // or null
  u16* half_out;    // or null
  int width, x_stride, out_stride;
  float eps;
};

INLINE float square(float v) { return v * v; }

INLINE void write_normed(const NormArgs& a, int row, int i, float v) {
  if (a.out) a.out[(u64)row * a.out_stride + i] = v;
  if (a.half_out) a.half_out[(u64)row * a.width + i] = float_to_half(v);
}

ENTRY __launch_bounds__(256) rms_norm(const __grid_constant__ NormArgs a) {
  __shared__ float scratch[8];
  const float* x = a.x + (u64)blockIdx.x * a.x_stride;
  wait_for_previous_kernel();
  release_next_kernel();
  float squares = 0;
  for (int i = threadIdx.x; i < a.width; i += 256) squares += square(__ldcg(x + i));
  const float factor = rsqrtf(block_sum<8>(squares, scratch) / a.width + a.eps);
  for (int i = threadIdx.x; i < a.width; i += 256) write_normed(a, blockIdx.x, i, __ldcg(x + i) * factor * __ldg(a.weight + i));
}

ENTRY __launch_bounds__(256) layer_norm(const __grid_constant__ NormArgs a) {
  __shared__ float scratch[8];
  const float* x = a.x + (u64)blockIdx.x * a.x_stride;
  wait_for_previous_kernel();
  release_next_kernel();
  float sum = 0, squares = 0;
  for (int i = threadIdx.x; i < a.width; i += 256) sum += __ldcg(x + i);
  const float mean = block_sum<8>(sum, scratch) / a.width;
  for (int i = threadIdx.x; i < a.width; i += 256) squares += square(__ldcg(x + i) - mean);
  const float factor = rsqrtf(block_sum<8>(squares, scratch) / a.width + a.eps);
  for (int i = threadIdx.x; i < a.width; i += 256) write_normed(a, blockIdx.x, i, (__ldcg(x + i) - mean) * factor * __ldg(a.weight + i) + __ldg(a.bias + i));
}
