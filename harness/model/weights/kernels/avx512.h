/* What the vector kernels share. */

#pragma once

#include <immintrin.h>
#include <string.h>

#include "span.h"

#define AVX512_FEATURES "avx512f,avx512bw,avx512vl,avx512dq,fma"
#define VNNI_FEATURES AVX512_FEATURES ",avx512vnni"
#define AVX512 __attribute__((target(AVX512_FEATURES)))
#define VNNI __attribute__((target(VNNI_FEATURES)))

/* The lanes of the first n of 16. */
AVX512 static inline __mmask16 first(long n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

/* Four columns of 64 tokens to four registers of 16 tokens, each with its four bytes together. */
AVX512 static inline void interleave(const uint8_t *x, const uint16_t *c, __m512i *to) {
    __m512i a = _mm512_load_si512(x + c[0] * TILE), b = _mm512_load_si512(x + c[1] * TILE);
    __m512i d = _mm512_load_si512(x + c[2] * TILE), e = _mm512_load_si512(x + c[3] * TILE);
    __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
    __m512i low2 = _mm512_unpacklo_epi8(d, e), high2 = _mm512_unpackhi_epi8(d, e);
    to[0] = _mm512_unpacklo_epi16(low, low2);
    to[1] = _mm512_unpackhi_epi16(low, low2);
    to[2] = _mm512_unpacklo_epi16(high, high2);
    to[3] = _mm512_unpackhi_epi16(high, high2);
}

/* Integer sums [16 tokens][16 outputs] to floats in a tile's rows [16 tokens][SPAN]. */
AVX512 static inline void finish16(const Product *p, long g, float *to, const __m512i *sums, const float *scales) {
    __mmask16 lanes = first(p->out - 16 * g);
    __m512i offset = _mm512_loadu_si512(p->offset + 16 * g);
    __m512 scale = _mm512_maskz_loadu_ps(lanes, p->scale + 16 * g);
    __m512 bias = p->bias ? _mm512_maskz_loadu_ps(lanes, p->bias + 16 * g) : _mm512_setzero_ps();
    for (int t = 0; t < 16; t++) {
        __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sums[t], offset)), scale);
        _mm512_store_ps(to + t * SPAN, _mm512_fmadd_ps(y, _mm512_set1_ps(scales[t]), bias));
    }
}
