/* The vectors of AVX512: 16 lanes of 32 bits. With SET_VNNI defined, four bytes are multiplied and summed at once. */

#pragma once

#include "avx512.h"

#define LANES 16
#define TOKENS 8 /* tokens of a register tile */
#ifdef SET_VNNI
#define TARGET VNNI
#define SHIFT 128 /* what is added to the bytes of weights: vpdpbusd takes them unsigned */
#else
#define TARGET AVX512
#define SHIFT 0
#endif
#include "lanes.h"

INLINE Floats larger(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE Floats fused(Floats a, Floats b, Floats c) {
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
INLINE Ints rounded(Floats a) { return (Ints)_mm512_cvtps_epi32((__m512)a); }
INLINE Floats load_some(const float *from, long n) { return (Floats)_mm512_maskz_loadu_ps(first(n), from); }
INLINE void store_some(float *to, long n, Floats a) { _mm512_mask_storeu_ps(to, first(n), (__m512)a); }
INLINE void store_words(int16_t *to, Ints a) {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtsepi32_epi16((__m512i)a));
}
INLINE void store_bytes(int8_t *to, Ints a) { _mm_storeu_si128((__m128i *)to, _mm512_cvtsepi32_epi8((__m512i)a)); }
INLINE Ints load_bytes(const int8_t *from) {
    return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from));
}

#ifdef SET_VNNI
typedef Ints Weights;

INLINE Weights weights_of(Ints w) { return w; }

/* Their intrinsics make gcc copy every sum to another register and back. */
INLINE Ints dot4(Ints sum, Ints x, Weights w) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
}
INLINE Ints dot2(Ints sum, Ints x, Ints w) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
}
#else
/* As on AVX2, where an instruction gives a byte the sign of another one. */
typedef struct {
    __m512i magnitude;
    __mmask64 negative;
} Weights;

INLINE Weights weights_of(Ints w) {
    return (Weights){_mm512_abs_epi8((__m512i)w), _mm512_movepi8_mask((__m512i)w)};
}
INLINE Ints dot4(Ints sum, Ints x, Weights w) {
    __m512i signed_x = _mm512_mask_sub_epi8((__m512i)x, w.negative, _mm512_setzero_si512(), (__m512i)x);
    __m512i pairs = _mm512_maddubs_epi16(w.magnitude, signed_x);
    return sum + (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}
INLINE Ints dot2(Ints sum, Ints x, Ints w) { return sum + (Ints)_mm512_madd_epi16((__m512i)x, (__m512i)w); }
#endif
