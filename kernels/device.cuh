// Scalars, conversions, warp reductions and the copy and launch instructions that the kernels share.
// Needs no header of the toolkit, so NVRTC alone compiles it.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define INLINE __device__ __forceinline__
#define ENTRY extern "C" __global__ void
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define HAS_BULK_COPY 1
#define IN_CLUSTERS_OF(n) __cluster_dims__(n, 1, 1)
#else
#define HAS_BULK_COPY 0
#define IN_CLUSTERS_OF(n)
#endif

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

constexpr float NEGATIVE_INFINITY = -1e30f;

INLINE float half_to_float(u32 h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"((u16)h));
  return f;
}
INLINE u16 float_to_half(float f) {
  u16 h;
  f = fminf(fmaxf(f, -65504.f), 65504.f);
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
INLINE u32 floats_to_half2(float low, float high) {
  u32 h;
  low = fminf(fmaxf(low, -65504.f), 65504.f);
  high = fminf(fmaxf(high, -65504.f), 65504.f);
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(h) : "f"(high), "f"(low));
  return h;
}
INLINE float2 half2_to_floats(u32 h) { return make_float2(half_to_float(h & 0xffff), half_to_float(h >> 16)); }
INLINE u32 half2_of(u16 h) { return (u32)h | (u32)h << 16; }
INLINE u32 half2_sub(u32 a, u32 b) {
  u32 d;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
INLINE u32 half2_mul(u32 a, u32 b) {
  u32 d;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
INLINE u32 half2_fma(u32 a, u32 b, u32 c) {
  u32 d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
INLINE float bfloat_to_float(u32 b) { return __uint_as_float(b << 16); }
INLINE u32 permute(u32 a, u32 b, u32 selector) {
  u32 d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
  return d;
}
INLINE int dot4_unsigned(u32 a, int b, int c) {
  int d;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

INLINE float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  return v;
}
INLINE float warp_max(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
  return v;
}
// Sum over the block in a fixed order; `scratch` holds one float a warp. Every thread gets the sum.
template <int WARPS>
INLINE float block_sum(float v, float* scratch) {
  v = warp_sum(v);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = v;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < WARPS; w++) sum += scratch[w];
  return sum;
}

INLINE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// --- programmatic dependent launch: the next kernel's blocks may start once all have called `release`.
// Before its wait a kernel reads what no kernel of the step writes (weights, the position, earlier tokens'
// keys). Where it reads more (gemv.cu: EXPERT_OUT), the kernel before releases only after its own wait, so
// that whatever two kernels ago wrote is complete at entry. Others may release first.
INLINE void wait_for_previous_kernel() {
#if HAS_BULK_COPY
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
INLINE void release_next_kernel() {
#if HAS_BULK_COPY
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// --- asynchronous copies to shared memory, 16 bytes a thread
INLINE void copy16(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
INLINE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
INLINE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// --- tensor cores: 16x8x16, half in, float accumulate
INLINE void load_matrix4(u32* r, u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
INLINE void load_matrix4_transposed(u32* r, u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
// An 8x8 matrix of halves, two a thread as in a fragment, turned over its diagonal.
INLINE u32 transposed_matrix(u32 m) {
  u32 d;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(m));
  return d;
}
INLINE void mma16816(float* c, const u32* a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
