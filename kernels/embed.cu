// Embedding lookup: out[t] = table[id[t]] (+ position_table[position + t]); table packed in tiles.
// One block a token, one thread a block of 32 columns.
#include "dequantize.cuh"

struct EmbedArgs {
  const u8* table;
  const int* ids;            // [tokens]
  float* out;                // [tokens, k], rows out_stride apart
  const int* position;       // first position; null unless add
  int tokens, k, padded_k, tile_rows, vocab, out_stride, add;
};

template <int T>
INLINE float float_element(const u8* row, int i) {
  if (T == F32) return __ldg((const float*)row + i);
  const u32 v = __ldg((const u16*)row + i);
  return T == F16 ? half_to_float(v) : bfloat_to_float(v);
}

template <int T>
INLINE void embed(const EmbedArgs& a) {
  wait_for_previous_kernel();
  release_next_kernel();
  const int t = blockIdx.x;
  int id = a.add ? __ldcg(a.position) + t : __ldcg(a.ids + t);
  id = min(max(id, 0), a.vocab - 1);
  const u8* tile = a.table + (u64)(id / a.tile_rows) * tile_bytes(T, a.tile_rows, a.padded_k);
  const int slot = id % a.tile_rows;
  float* out = a.out + (u64)t * a.out_stride;
  for (int block = threadIdx.x; block * 32 < a.k; block += blockDim.x) {
    if constexpr (is_float_type(T)) {
      const u8* row = tile + slot * quant_bytes(T, a.padded_k);
      for (int i = block * 32; i < min(block * 32 + 32, a.k); i++) out[i] = (a.add ? out[i] : 0.f) + float_element<T>(row, i);
    } else {
      const RawBlock raw = load_block<T>(tile, a.tile_rows, a.padded_k, slot, block);
#pragma unroll
      for (int g = 0; g < 8; g++) {
        float4 v = dequantize4<T>(raw, g);
        float* o = out + block * 32 + 4 * g;
        if (a.add) v = make_float4(o[0] + v.x, o[1] + v.y, o[2] + v.z, o[3] + v.w);
        *(float4*)o = v;
      }
    }
  }
}

ENTRY embed_F32(const __grid_constant__ EmbedArgs a) { embed<F32>(a); }
ENTRY embed_F16(const __grid_constant__ EmbedArgs a) { embed<F16>(a); }
ENTRY embed_BF16(const __grid_constant__ EmbedArgs a) { embed<BF16>(a); }
ENTRY embed_Q4_0(const __grid_constant__ EmbedArgs a) { embed<Q4_0>(a); }
ENTRY embed_Q4_1(const __grid_constant__ EmbedArgs a) { embed<Q4_1>(a); }
ENTRY embed_Q5_0(const __grid_constant__ EmbedArgs a) { embed<Q5_0>(a); }
ENTRY embed_Q5_1(const __grid_constant__ EmbedArgs a) { embed<Q5_1>(a); }
ENTRY embed_Q8_0(const __grid_constant__ EmbedArgs a) { embed<Q8_0>(a); }
ENTRY embed_Q4_K(const __grid_constant__ EmbedArgs a) { embed<Q4_K>(a); }
ENTRY embed_Q5_K(const __grid_constant__ EmbedArgs a) { embed<Q5_K>(a); }
ENTRY embed_Q6_K(const __grid_constant__ EmbedArgs a) { embed<Q6_K>(a); }
ENTRY embed_MXFP4(const __grid_constant__ EmbedArgs a) { embed<MXFP4>(a); }
