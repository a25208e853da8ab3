/* The vectors of AVX2: 8 lanes of 32 bits. */

#pragma once

#include <immintrin.h>

#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#define TOKENS 4 /* tokens of a register tile */
#define SHIFT 0  /* what is added to the bytes of weights */
#include "lanes.h"

INLINE Floats larger(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE Floats fused(Floats a, Floats b, Floats c) {
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
INLINE Ints rounded(Floats a) { return (Ints)_mm256_cvtps_epi32((__m256)a); }

INLINE __m256i lanes_below(long n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)MIN(n, LANES)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE Floats load_some(const float *from, long n) { return (Floats)_mm256_maskload_ps(from, lanes_below(n)); }
INLINE void store_some(float *to, long n, Floats a) { _mm256_maskstore_ps(to, lanes_below(n), (__m256)a); }

INLINE void store_words(int16_t *to, Ints a) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)a, (__m256i)a), 0x08);
    _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(words));
}
INLINE void store_bytes(int8_t *to, Ints a) {
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)a), _mm256_extracti128_si256((__m256i)a, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packs_epi16(words, words));
}
INLINE Ints load_bytes(const int8_t *from) {
    return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from));
}

/* vpmaddubsw multiplies unsigned by signed bytes and adds two products in 16 bits, where twice 127 x 127 fits: so it
   is given the weights' magnitudes, and activations with the weights' signs. */
typedef struct {
    __m256i magnitude, sign;
} Weights;

INLINE Weights weights_of(Ints w) {
    return (Weights){_mm256_abs_epi8((__m256i)w), (__m256i)w};
}
INLINE Ints dot4(Ints sum, Ints x, Weights w) {
    __m256i pairs = _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8((__m256i)x, w.sign));
    return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
INLINE Ints dot2(Ints sum, Ints x, Ints w) { return sum + (Ints)_mm256_madd_epi16((__m256i)x, (__m256i)w); }
