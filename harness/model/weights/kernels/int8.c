/* Int8 on AVX512-VNNI; blocks of 16 on AMX tiles where the processor has them. */

#include "buffer.h"
#include "product.h"

#ifdef X86
#include <math.h>

#include "avx512.h"

#define CHUNK 32 /* quads whose activations are interleaved at once: 8 KiB */
#define AHEAD 32 /* quads by which a single token's weights are prefetched; the processor's own prefetching is slower */

/* vpdpbusd; its intrinsic makes gcc copy every sum to another register and back. */
VNNI static inline __attribute__((always_inline)) __m512i dot(__m512i sum, __m512i x, __m512i w) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
}

/* A token's activations [n] as bytes; a value that is not finite gives a scale of NaN. */
VNNI static void quantize(const float *x, long n, uint8_t *q, float *scale) {
    __m512 largest = _mm512_setzero_ps(), sum = largest; /* max drops NaN, a sum of x - x does not */
    for (long k = 0; k < n; k += 16) {
        __m512 v = _mm512_maskz_loadu_ps(first(n - k), x + k);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(v));
        sum = _mm512_add_ps(sum, _mm512_sub_ps(v, v));
    }
    float top = _mm512_reduce_max_ps(largest);
    int finite = _mm512_reduce_add_ps(sum) == 0;
    __m512 by = _mm512_set1_ps(top > 0 && finite ? 127.0f / top : 0);
    for (long k = 0; k < n; k += 16) {
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(first(n - k), x + k), by);
        __m512i rounded = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(128));
        _mm512_mask_cvtepi32_storeu_epi8(q + k, first(n - k), rounded);
    }
    *scale = finite ? top / 127.0f : NAN;
}

/* 64 rows of bytes [64][stride] to columns [in][64]. Byte 16 L + 4 b + j of a column is token 16 b + 4 L + j, so that
   `interleave` leaves tokens in order. */
VNNI static void transpose(const uint8_t *rows, long in, long stride, uint8_t *columns) {
    for (long k = 0; k < in; k += 64)
        for (int lane = 0; lane < 4; lane++) {
            __m512i a[16], t[16];
            for (int i = 0; i < 16; i++)
                a[i] = _mm512_loadu_si512(rows + (16 * (i / 4) + 4 * lane + i % 4) * stride + k);
            for (int round = 0; round < 4; round++) { /* each halves the distance to the transposed */
                for (int i = 0; i < 8; i++) {
                    t[2 * i] = _mm512_unpacklo_epi8(a[i], a[i + 8]);
                    t[2 * i + 1] = _mm512_unpackhi_epi8(a[i], a[i + 8]);
                }
                memcpy(a, t, sizeof a);
            }
            for (int c = 0; c < 16; c++) {
                uint8_t *to = columns + (k + c) * TILE + 16 * lane;
                _mm_storeu_si128((__m128i *)to, _mm512_castsi512_si128(a[c]));
                _mm_storeu_si128((__m128i *)(to + 16 * TILE), _mm512_extracti32x4_epi32(a[c], 1));
                _mm_storeu_si128((__m128i *)(to + 32 * TILE), _mm512_extracti32x4_epi32(a[c], 2));
                _mm_storeu_si128((__m128i *)(to + 48 * TILE), _mm512_extracti32x4_epi32(a[c], 3));
            }
        }
}

/* 16 outputs in the lanes; a token's four bytes are broadcast; x [in][TILE]. */
VNNI static void int8_group16(const Product *p, long g, float *to, long tokens, const uint8_t *x, const float *scales) {
    _Alignas(64) __m512i a[CHUNK][4], sums[TILE];
    const int8_t *value = p->value;
    for (long t = 0; t < TILE; t++) sums[t] = _mm512_setzero_si512();
    for (long q0 = p->start[g]; q0 < p->start[g + 1]; q0 += CHUNK) {
        long quads = MIN(CHUNK, p->start[g + 1] - q0);
        for (long q = 0; q < quads; q++) interleave(x, p->column + 4 * (q0 + q), a[q]);
        for (int b = 0; 16 * b < tokens; b++) {
            __m512i s[16];
            for (int t = 0; t < 16; t++) s[t] = sums[16 * b + t];
            for (long q = 0; q < quads; q++) {
                __m512i w = _mm512_loadu_si512(value + 64 * (q0 + q));
                const int32_t *four_of = (const int32_t *)&a[q][b];
#pragma GCC unroll 16
                for (int t = 0; t < 16; t++) s[t] = dot(s[t], _mm512_set1_epi32(four_of[t]), w);
            }
            for (int t = 0; t < 16; t++) sums[16 * b + t] = s[t];
        }
    }
    for (int b = 0; 16 * b < tokens; b++) finish16(p, g, to + 16 * b * SPAN, sums + 16 * b, scales + 16 * b);
}

VNNI static inline __m512i few16_step(const Product *p, long q, const uint8_t *x, __m512i sum) {
    const int8_t *value = (const int8_t *)p->value + 64 * q;
    _mm_prefetch((const char *)value + 64 * AHEAD, _MM_HINT_T0);
    return dot(sum, _mm512_set1_epi32(four(x, p->column + 4 * q)), _mm512_loadu_si512(value));
}

/* 16 outputs of one token x [in]. */
VNNI static void int8_few16(const Product *p, long g, long m, const uint8_t *x, float scale) {
    __m512i s[4] = {_mm512_loadu_si512(p->offset + 16 * g), _mm512_setzero_si512(), _mm512_setzero_si512(),
                    _mm512_setzero_si512()};
    long q = p->start[g], end = p->start[g + 1];
    for (; q + 4 <= end; q += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) s[i] = few16_step(p, q + i, x, s[i]);
    for (; q < end; q++) s[0] = few16_step(p, q, x, s[0]);
    __m512i sum = _mm512_add_epi32(_mm512_add_epi32(s[0], s[1]), _mm512_add_epi32(s[2], s[3]));
    __mmask16 lanes = first(p->out - 16 * g);
    __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_maskz_loadu_ps(lanes, p->scale + 16 * g));
    __m512 bias = p->bias ? _mm512_maskz_loadu_ps(lanes, p->bias + 16 * g) : _mm512_setzero_ps();
    _mm512_mask_storeu_ps(p->y + m * p->out + 16 * g, lanes, _mm512_fmadd_ps(y, _mm512_set1_ps(scale), bias));
}

/* The paper's: 16 tokens in the lanes, 4 outputs by 64 tokens in registers; a row's four weights are broadcast. */
VNNI static inline __attribute__((always_inline)) void int8_group4(
    const Product *p, long g, float *to, long tokens, const uint8_t *x, const float *scales, const int blocks) {
    const int32_t *value = p->value;
    __m512i s[4][4], a[4];
    for (int r = 0; r < 4; r++)
        for (int b = 0; b < blocks; b++) s[r][b] = _mm512_set1_epi32(p->offset[4 * g + r]);
    for (long q = p->start[g]; q < p->start[g + 1]; q++) {
        interleave(x, p->column + 4 * q, a);
        for (int r = 0; r < 4; r++) {
            __m512i w = _mm512_set1_epi32(value[4 * q + r]);
            for (int b = 0; b < blocks; b++) s[r][b] = _mm512_dpbusd_epi32(s[r][b], a[b], w);
        }
    }
    for (int b = 0; b < blocks; b++) {
        _Alignas(64) float y[4][16];
        __m512 scale = _mm512_loadu_ps(scales + 16 * b);
        for (int r = 0; r < 4; r++) {
            long n = MIN(4 * g + r, p->out - 1);
            __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(s[r][b]), _mm512_set1_ps(p->scale[n]));
            __m512 bias = _mm512_set1_ps(p->bias ? p->bias[n] : 0);
            _mm512_store_ps(y[r], _mm512_fmadd_ps(v, scale, bias));
        }
        for (long t = 0; t < MIN(16, tokens - 16 * b); t++)
            for (int r = 0; r < 4; r++) to[(16 * b + t) * SPAN + r] = y[r][t];
    }
}

/* One token, four quads at once: lane 4 i + r is output r of quad i. */
VNNI static void int8_few4(const Product *p, long g, long m, const uint8_t *x, float scale) {
    const int8_t *value = p->value;
    const __m512i spread = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    __m512i s = _mm512_setzero_si512();
    for (long q = p->start[g]; q < p->start[g + 1]; q += 4) {
        int32_t a[4] = {0};
        long quads = MIN(4, p->start[g + 1] - q);
        for (long i = 0; i < quads; i++) a[i] = four(x, p->column + 4 * (q + i));
        __m512i fours = _mm512_permutexvar_epi32(spread, _mm512_castsi128_si512(_mm_loadu_si128((__m128i *)a)));
        s = _mm512_dpbusd_epi32(s, fours, _mm512_maskz_loadu_epi32(first(4 * quads), value + 16 * q));
    }
    __m128i sum = _mm_add_epi32(_mm_add_epi32(_mm512_castsi512_si128(s), _mm512_extracti32x4_epi32(s, 1)),
                                _mm_add_epi32(_mm512_extracti32x4_epi32(s, 2), _mm512_extracti32x4_epi32(s, 3)));
    int32_t r4[4];
    _mm_storeu_si128((__m128i *)r4, sum);
    for (int r = 0; r < 4 && 4 * g + r < p->out; r++) {
        long n = 4 * g + r;
        float y = (float)(r4[r] + p->offset[n]) * p->scale[n];
        p->y[m * p->out + n] = __builtin_fmaf(y, scale, p->bias ? p->bias[n] : 0); /* one rounding, as in a tile */
    }
}

VNNI static void int8_few(const Product *p, int rows, int threads) {
    uint8_t *bytes = thread_buffer(0, p->in * p->tokens);
    float scales[FEW];
    for (long t = 0; t < p->tokens; t++) quantize(p->x + t * p->in, p->in, bytes + t * p->in, scales + t);
#pragma omp parallel for num_threads(threads)
    for (long g = 0; g < p->groups; g++)
        for (long t = 0; t < p->tokens; t++)
            (rows == 16 ? int8_few16 : int8_few4)(p, g, t, bytes + t * p->in, scales[t]);
}

/* SPAN outputs of a tile's tokens, from x [in][TILE]. */
VNNI static void int8_span(
    const Product *p, int rows, int tiled, long first_group, long m0, const uint8_t *x, const float *scales) {
    _Alignas(64) float y[TILE][SPAN];
    long tokens = MIN(TILE, p->tokens - m0);
    for (long g = first_group; g < MIN(first_group + SPAN / rows, p->groups); g++) {
        float *to = y[0] + (g - first_group) * rows;
        if (rows == 16)
            (tiled ? int8_tiles16 : int8_group16)(p, g, to, tokens, x, scales);
        else if (tokens > 48)
            int8_group4(p, g, to, tokens, x, scales, 4);
        else if (tokens > 16)
            int8_group4(p, g, to, tokens, x, scales, 3);
        else
            int8_group4(p, g, to, tokens, x, scales, 1);
    }
    copy_out(p, m0, tokens, first_group * rows, y[0]);
}

VNNI void int8_vnni(const Product *p, int rows, int threads, int tiled) {
    if (p->tokens <= FEW) {
        int8_few(p, rows, threads);
        return;
    }
    long stride = (p->in + 63) / 64 * 64, tiles = (p->tokens + TILE - 1) / TILE;
    uint8_t *columns = thread_buffer(0, stride * TILE * tiles);
    float *scales = thread_buffer(1, sizeof(float) * TILE * tiles);
    tiled = tiled && rows == 16;
#pragma omp parallel num_threads(threads)
    {
        if (tiled) tiles_on();
#pragma omp for
        for (long i = 0; i < tiles; i++) {
            uint8_t *bytes = thread_buffer(2, stride * TILE);
            for (long t = 0; t < MIN(TILE, p->tokens - i * TILE); t++)
                quantize(p->x + (i * TILE + t) * p->in, p->in, bytes + t * stride, scales + i * TILE + t);
            transpose(bytes, p->in, stride, columns + i * stride * TILE);
        }
        for (long i = 0; i < tiles; i++) /* spans outermost would write all over y */
#pragma omp for nowait
            for (long g = 0; g < p->groups; g += SPAN / rows)
                int8_span(p, rows, tiled, g, i * TILE, columns + i * stride * TILE, scales + i * TILE);
        if (tiled) tiles_off();
    }
}

#endif
