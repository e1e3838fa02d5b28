// Barriers in shared memory (mbarrier, sm_90 on), by address: so many arrivals, and bytes where they are
// expected, end a phase; phases are waited for by parity.
#pragma once
#include "device.cuh"

#if HAS_BULK_COPY
INLINE void barrier_init(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
INLINE void barrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrive, and expect so many bytes of copies in this phase.
INLINE void barrier_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
INLINE void barrier_wait(u32 barrier, u32 parity) {
  u32 done;
  do {
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
  } while (!done);
}
// What this thread wrote to the block's memory, barriers included, is there for copies and tensor cores.
// A fence of all memory would wait for the GPU.
INLINE void fence_for_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
#endif
