// Hopper's warpgroup matrix instructions (sm_90a): 64 x N += 64 x 16 · (N x 16)ᵀ, halves from shared memory in
// rows of 128 bytes whose 16-byte chunks are permuted by row (swizzle of 128 bytes). Only where HAS_WARPGROUP.
#pragma once
#include "barrier.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAS_WARPGROUP 1

// Rows of 128 bytes, eight of them 1,024 apart, at an address that is a multiple of 1,024 (plus 32 a k16).
INLINE u64 matrix_descriptor(u32 address) { return 1ull << 62 | 64ull << 32 | 1ull << 16 | (address & 0x3ffff) >> 4; }

INLINE void warpgroup_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
INLINE void warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int PENDING>
INLINE void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
#define SUMS4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS16(d, i) SUMS4(d, i), SUMS4(d, i + 4), SUMS4(d, i + 8), SUMS4(d, i + 12)
#define SUMS32(d, i) SUMS16(d, i), SUMS16(d, i + 16)

#define NAMES32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES64 NAMES32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES96 NAMES64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define NAMES128 NAMES96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// Sums of row lane / 4 + 8 · (i / 2 % 2) of the warp's 16 and column i / 4 · 8 + 2 · (lane % 4) + i % 2.
template <int N>
struct Warpgroup;
template <>
struct Warpgroup<64> {
  static INLINE void multiply(float* d, u64 rows, u64 columns) {
    asm volatile("{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" NAMES32 "}, %32, %33, p, 1, 1, 0, 0;}" : SUMS32(d, 0) : "l"(rows), "l"(columns));
  }
};
template <>
struct Warpgroup<128> {
  static INLINE void multiply(float* d, u64 rows, u64 columns) {
    asm volatile("{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" NAMES64 "}, %64, %65, p, 1, 1, 0, 0;}" : SUMS32(d, 0), SUMS32(d, 32) : "l"(rows), "l"(columns));
  }
};
template <>
struct Warpgroup<256> {
  static INLINE void multiply(float* d, u64 rows, u64 columns) {
    asm volatile("{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" NAMES128 "}, %128, %129, p, 1, 1, 0, 0;}" : SUMS32(d, 0), SUMS32(d, 32), SUMS32(d, 64), SUMS32(d, 96) : "l"(rows), "l"(columns));
  }
};
#else
#define HAS_WARPGROUP 0
#endif
