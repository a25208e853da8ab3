/* Block-sparse int8 on AVX2. Bytes stay signed: see set_avx2.h. */

#include "product.h"

#ifdef X86
#include "set_avx2.h"
#include "span.h"

#include "rounding.h"

#define CHUNK 16 /* quads whose activations are interleaved at once: 4 KiB */
#define AHEAD 32 /* quads by which a single token's weights are prefetched */

TARGET static void quantize(const float *x, long n, int8_t *q, float *scale) {
    float by;
    *scale = step_of(x, n, 127, &by);
    long k = 0;
    for (; k + LANES <= n; k += LANES) store_bytes(q + k, rounded(load_floats(x + k) * by));
    if (k < n) {
        int8_t rest[LANES];
        store_bytes(rest, rounded(load_some(x + k, n - k) * by));
        memcpy(q + k, rest, n - k);
    }
}

/* 64 rows of bytes [64][stride] to columns [in][64]. Byte 16 L + 4 b + j of a column is token 16 b + 4 L + j, so that
   `interleave` leaves tokens in order. */
TARGET static void transpose(const int8_t *rows, long in, long stride, int8_t *columns) {
    for (long k = 0; k < in; k += 16)
        for (int lane = 0; lane < 4; lane++) {
            __m128i a[16], t[16];
            for (int i = 0; i < 16; i++)
                a[i] = _mm_loadu_si128((const __m128i *)(rows + (16 * (i / 4) + 4 * lane + i % 4) * stride + k));
            for (int round = 0; round < 4; round++) { /* each halves the distance to the transposed */
                for (int i = 0; i < 8; i++) {
                    t[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
                    t[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
                }
                memcpy(a, t, sizeof a);
            }
            for (int c = 0; c < 16; c++) _mm_storeu_si128((__m128i *)(columns + (k + c) * TILE + 16 * lane), a[c]);
        }
}

/* Four columns c of 64 tokens to dwords of the four bytes of each token. */
INLINE void interleave(const int8_t *x, const uint16_t *c, __m256i to[4][2]) {
    for (int half = 0; half < 2; half++) {
        __m256i a[4];
        for (int i = 0; i < 4; i++) a[i] = _mm256_loadu_si256((const __m256i *)(x + c[i] * TILE + 32 * half));
        __m256i low = _mm256_unpacklo_epi8(a[0], a[1]), high = _mm256_unpackhi_epi8(a[0], a[1]);
        __m256i low2 = _mm256_unpacklo_epi8(a[2], a[3]), high2 = _mm256_unpackhi_epi8(a[2], a[3]);
        to[0][half] = _mm256_unpacklo_epi16(low, low2);
        to[1][half] = _mm256_unpackhi_epi16(low, low2);
        to[2][half] = _mm256_unpacklo_epi16(high, high2);
        to[3][half] = _mm256_unpackhi_epi16(high, high2);
    }
}

INLINE Floats bias_of(const Product *p, long n) {
    return p->bias ? load_some(p->bias + n, p->out - n) : (Floats){0};
}

/* 16 outputs in the lanes of two vectors, four tokens at once; x [in][TILE]. */
TARGET static void group16(const Product *p, long g, float *to, long tokens, const int8_t *x, const float *scales) {
    __m256i a[CHUNK][4][2];
    Ints sums[TILE][2];
    const int8_t *value = p->value;
    memset(sums, 0, sizeof sums);
    for (long q0 = p->start[g]; q0 < p->start[g + 1]; q0 += CHUNK) {
        long quads = MIN(CHUNK, p->start[g + 1] - q0);
        for (long q = 0; q < quads; q++) interleave(x, p->column + 4 * (q0 + q), a[q]);
        for (long t0 = 0; t0 < tokens; t0 += 4) {
            Ints s[4][2];
            memcpy(s, sums + t0, sizeof s);
            for (long q = 0; q < quads; q++) {
                Weights w[2];
                for (int h = 0; h < 2; h++) w[h] = weights_of(load_ints(value + 64 * (q0 + q) + 32 * h));
                const int32_t *fours = (const int32_t *)a[q] + t0;
#pragma GCC unroll 4
                for (int t = 0; t < 4; t++) {
                    Ints dword = all_ints(fours[t]);
                    for (int h = 0; h < 2; h++) s[t][h] = dot4(s[t][h], dword, w[h]);
                }
            }
            memcpy(sums + t0, s, sizeof s);
        }
    }
    for (int h = 0; h < 2; h++) {
        long n = 16 * g + LANES * h;
        Floats scale = load_some(p->scale + n, p->out - n), bias = bias_of(p, n);
        for (long t = 0; t < tokens; t++)
            store_floats(to + t * SPAN + LANES * h, fused(to_floats(sums[t][h]) * scale, all_floats(scales[t]), bias));
    }
}

/* 16 outputs of one token x [in]. */
TARGET static void few16(const Product *p, long g, long m, const int8_t *x, float scale) {
    const int8_t *value = p->value;
    Ints s[2][2] = {0};
    for (long q = p->start[g]; q < p->start[g + 1]; q++) {
        Ints dword = all_ints(four((const uint8_t *)x, p->column + 4 * q));
        _mm_prefetch((const char *)value + 64 * (q + AHEAD), _MM_HINT_T0);
        for (int h = 0; h < 2; h++)
            s[q & 1][h] = dot4(s[q & 1][h], dword, weights_of(load_ints(value + 64 * q + 32 * h)));
    }
    for (int h = 0; h < 2; h++) {
        long n = 16 * g + LANES * h;
        Floats y = to_floats(s[0][h] + s[1][h]) * load_some(p->scale + n, p->out - n);
        store_some(p->y + m * p->out + n, p->out - n, fused(y, all_floats(scale), bias_of(p, n)));
    }
}

/* 16 tokens in the lanes of two vectors, 4 outputs; a row's four weights are broadcast. */
TARGET static void group4(const Product *p, long g, float *to, long tokens, const int8_t *x, const float *scales) {
    __m256i a[CHUNK][4][2];
    Ints sums[4][4][2];
    const int32_t *value = p->value;
    memset(sums, 0, sizeof sums);
    for (long q0 = p->start[g]; q0 < p->start[g + 1]; q0 += CHUNK) {
        long quads = MIN(CHUNK, p->start[g + 1] - q0);
        for (long q = 0; q < quads; q++) interleave(x, p->column + 4 * (q0 + q), a[q]);
        for (long b = 0; 16 * b < tokens; b++) {
            Ints s[4][2];
            memcpy(s, sums[b], sizeof s);
            for (long q = 0; q < quads; q++)
#pragma GCC unroll 4
                for (int r = 0; r < 4; r++) {
                    Weights w = weights_of(all_ints(value[4 * (q0 + q) + r]));
                    for (int h = 0; h < 2; h++) s[r][h] = dot4(s[r][h], (Ints)a[q][b][h], w);
                }
            memcpy(sums[b], s, sizeof s);
        }
    }
    for (int r = 0; r < MIN(4, p->out - 4 * g); r++) {
        long n = 4 * g + r;
        for (long t = 0; t < tokens; t++) {
            float y = (float)((int32_t *)sums[t / 16][r])[t % 16] * p->scale[n];
            to[t * SPAN + r] = __builtin_fmaf(y, scales[t], p->bias ? p->bias[n] : 0);
        }
    }
}

/* One token, two quads at once: lane 4 i + r is output r of quad i. */
TARGET static void few4(const Product *p, long g, long m, const int8_t *x, float scale) {
    const int8_t *value = p->value;
    const uint8_t *bytes = (const uint8_t *)x;
    Ints s = {0};
    long q = p->start[g], end = p->start[g + 1];
    for (; q + 2 <= end; q += 2) {
        __m128i first = _mm_set1_epi32(four(bytes, p->column + 4 * q));
        __m128i second = _mm_set1_epi32(four(bytes, p->column + 4 * q + 4));
        s = dot4(s, (Ints)_mm256_set_m128i(second, first), weights_of(load_ints(value + 16 * q)));
    }
    if (q < end) {
        __m256i last = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(value + 16 * q)));
        last = _mm256_inserti128_si256(last, _mm_setzero_si128(), 1);
        s = dot4(s, all_ints(four(bytes, p->column + 4 * q)), weights_of((Ints)last));
    }
    for (int r = 0; r < 4 && 4 * g + r < p->out; r++) {
        long n = 4 * g + r;
        float y = (float)(s[r] + s[4 + r]) * p->scale[n];
        p->y[m * p->out + n] = __builtin_fmaf(y, scale, p->bias ? p->bias[n] : 0); /* one rounding, as in a tile */
    }
}

TARGET static void few(const Product *p, int rows, int threads) {
    int8_t *bytes = thread_buffer(0, p->in * p->tokens);
    float scales[FEW];
    for (long t = 0; t < p->tokens; t++) quantize(p->x + t * p->in, p->in, bytes + t * p->in, scales + t);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long g = 0; g < p->groups; g++)
        for (long t = 0; t < p->tokens; t++) (rows == 16 ? few16 : few4)(p, g, t, bytes + t * p->in, scales[t]);
}

/* SPAN outputs of a tile's tokens, from x [in][TILE]. */
TARGET static void span(const Product *p, int rows, long first, long m0, const int8_t *x, const float *scales) {
    float y[TILE][SPAN];
    long tokens = MIN(TILE, p->tokens - m0);
    for (long g = first; g < MIN(first + SPAN / rows, p->groups); g++)
        (rows == 16 ? group16 : group4)(p, g, y[0] + (g - first) * rows, tokens, x, scales);
    copy_out(p, m0, tokens, first * rows, y[0]);
}

TARGET void int8_avx2(const Product *p, int rows, int threads) {
    if (p->tokens <= FEW) {
        few(p, rows, threads);
        return;
    }
    long stride = (p->in + 63) / 64 * 64, tiles = (p->tokens + TILE - 1) / TILE;
    int8_t *columns = thread_buffer(0, stride * TILE * tiles);
    float *scales = thread_buffer(1, sizeof(float) * TILE * tiles);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for
        for (long i = 0; i < tiles; i++) {
            int8_t *bytes = thread_buffer(2, stride * TILE);
            for (long t = 0; t < MIN(TILE, p->tokens - i * TILE); t++)
                quantize(p->x + (i * TILE + t) * p->in, p->in, bytes + t * stride, scales + i * TILE + t);
            transpose(bytes, p->in, stride, columns + i * stride * TILE);
        }
        for (long i = 0; i < tiles; i++) /* spans outermost would write all over y */
#pragma omp for nowait
            for (long g = 0; g < p->groups; g += SPAN / rows)
                span(p, rows, g, i * TILE, columns + i * stride * TILE, scales + i * TILE);
    }
}

#endif
