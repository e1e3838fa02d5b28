// A warp's private stream of weight tiles into its ring of SLOTS shared-memory slots: the bulk copy
// engine on sm_90 and later (one lane asks, an mbarrier counts the bytes), cp.async before that.
// EVICT_FIRST: the tiles are the first to leave L2, where keys and activations stay (bulk copies only).
#pragma once
#include "device.cuh"

template <int SLOTS, int SLOT_BYTES, bool EVICT_FIRST>
struct TileStream {
  u8* ring;
  u32 barriers;
  int lane;

  INLINE TileStream(u8* warp_ring, u64* warp_barriers) : ring(warp_ring), barriers(shared_address(warp_barriers)), lane(threadIdx.x & 31) {
#if HAS_BULK_COPY
    if (lane == 0) {
#pragma unroll
      for (int s = 0; s < SLOTS; s++) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barriers + 8 * s) : "memory");
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // of all memory it would wait for the GPU
    }
    __syncwarp();
#endif
  }
  // Start copying a tile to a slot; `valid` false starts nothing but keeps the count of groups.
  INLINE void fetch(int slot, const u8* from, u32 bytes, bool valid) {
#if HAS_BULK_COPY
    if (lane == 0 && valid) {
      const u32 barrier = barriers + 8 * slot;
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
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
    const u32 parity = (n / SLOTS) & 1;
    u32 done;
    do {
      asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(barriers + 8 * slot), "r"(parity) : "memory");
    } while (!done);
#else
    copy_wait<SLOTS - 1>();
    __syncwarp();
#endif
    return ring + slot * SLOT_BYTES;
  }
};
