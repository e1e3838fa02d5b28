// Element by element over [rows, width], rows `stride` apart; float and, if asked, half output:
//   copy: x · add: x + y · gelu: 0.5·x·(1 + tanh(√(2/π)(x + 0.044715 x³)))
//   silu: x·σ(x)·y · clamped_swiglu: min(x,7)·σ(1.702 min(x,7))·(clamp(y,±7) + 1)
// Grid: x over blocks of 256 columns, y over rows.
#include "device.cuh"

struct ElementwiseArgs {
  const float* x;
  const float* y;
  float* out;       // or null
  u16* half_out;    // or null; rows `width` apart
  int width, x_stride, y_stride, out_stride;
};

template <class F>
INLINE void elementwise(const ElementwiseArgs& a, F f) {
  wait_for_previous_kernel();
  release_next_kernel();
  const int i = blockIdx.x * 256 + threadIdx.x;
  const u64 row = blockIdx.y;
  if (i >= a.width) return;
  const float v = f(__ldcg(a.x + row * a.x_stride + i), a.y ? __ldcg(a.y + row * a.y_stride + i) : 0.f);
  if (a.out) a.out[row * a.out_stride + i] = v;
  if (a.half_out) a.half_out[row * a.width + i] = float_to_half(v);
}

ENTRY elementwise_copy(const __grid_constant__ ElementwiseArgs a) {
  elementwise(a, [](float x, float) { return x; });
}
ENTRY elementwise_add(const __grid_constant__ ElementwiseArgs a) {
  elementwise(a, [](float x, float y) { return x + y; });
}
ENTRY elementwise_gelu(const __grid_constant__ ElementwiseArgs a) {
  elementwise(a, [](float x, float) { return 0.5f * x * (1.f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x))); });
}
ENTRY elementwise_silu(const __grid_constant__ ElementwiseArgs a) {
  elementwise(a, [](float x, float y) { return x / (1.f + __expf(-x)) * y; });
}
ENTRY elementwise_clamped_swiglu(const __grid_constant__ ElementwiseArgs a) {
  elementwise(a, [](float x, float y) {
    x = fminf(x, 7.f);
    y = fminf(fmaxf(y, -7.f), 7.f);
    return x / (1.f + __expf(-1.702f * x)) * (y + 1.f);
  });
}
