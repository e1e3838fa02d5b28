// The memory's read ceiling: every 16-byte word once, their exclusive or to `out` for each thread, so
// that no load can be left out. Grid: blocks of 512 threads, strided over the words.
#include "device.cuh"

struct ReadArgs {
  const uint4* words;
  u32* out;        // [threads of the grid]
  u64 n_words;
};

ENTRY __launch_bounds__(512) read_words(const __grid_constant__ ReadArgs a) {
  const u64 first = (u64)blockIdx.x * 512 + threadIdx.x, stride = (u64)gridDim.x * 512;
  u32 seen = 0;
#pragma unroll 8
  for (u64 i = first; i < a.n_words; i += stride) {
    const uint4 w = __ldcs(a.words + i);
    seen ^= w.x ^ w.y ^ w.z ^ w.w;
  }
  a.out[first] = seen;
}
