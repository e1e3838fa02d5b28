// A warp's private stream of weight tiles into its ring of SLOTS shared-memory slots: the bulk copy
// engine on sm_90 and later (one lane asks, an mbarrier counts the bytes), cp.async before that.
// EVICT_FIRST: the tiles are the first to leave L2, where keys and activations stay (bulk copies only).
#pragma once
#include "barrier.cuh"

template <int SLOTS, int SLOT_BYTES, bool EVICT_FIRST>
struct TileStream {
  u8* ring;
  u32 barriers;
  int lane;

  INLINE TileStream(u8* warp_ring, u64* warp_barriers) : ring(warp_ring), barriers(shared_address(warp_barriers)), lane(threadIdx.x & 31) {
#if HAS_BULK_COPY
    if (lane == 0) {
#pragma unroll
      for (int s = 0; s < SLOTS; s++) barrier_init(barriers + 8 * s, 1);
      fence_for_async();
    }
    __syncwarp();
#endif
  }
  // Start copying a tile to a slot; `valid` false starts nothing but keeps the count of groups.
  INLINE void fetch(int slot, const u8* from, u32 bytes, bool valid) {
#if HAS_BULK_COPY
    if (lane == 0 && valid) {
      const u32 barrier = barriers + 8 * slot;
      barrier_expect(barrier, bytes);
      const u32 to = shared_address(ring + slot * SLOT_BYTES);
      if (EVICT_FIRST) {
        u64 policy;
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
                     : "memory");
      } else {
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
      }
    }
#else
    if (valid)
      for (u32 b = lane * 16; b < bytes; b += 512) copy16(ring + slot * SLOT_BYTES + b, from + b, true);
    copy_commit();
#endif
  }
  // Wait for the n-th tile of this warp and return it.
  INLINE const u8* wait(int n) {
    const int slot = n % SLOTS;
#if HAS_BULK_COPY
    barrier_wait(barriers + 8 * slot, (n / SLOTS) & 1);
#else
    copy_wait<SLOTS - 1>();
    __syncwarp();
#endif
    return ring + slot * SLOT_BYTES;
  }
};
