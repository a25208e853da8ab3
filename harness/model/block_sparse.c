/* Products with block-sparse weights: y[m][n] = sum_k x[m][k] w[n][k] + b[n], over the columns that a group of rows keeps.

   After arXiv:2306.16601. A group is 16 or 4 outputs that keep the same inputs. Its kept inputs come in quads (int8) or
   singly (float); the last quad is filled up with zeros at input 0.
       start[g] .. start[g+1]   its quads (columns)
       column[quad][4]          the inputs
       value[quad][rows][4]     the weights
   Int8: a token's activations are rounded to -127..127 of its largest and stored with 128 added, because vpdpbusd
   multiplies unsigned by signed bytes; offset[n] = -128 sum(value of n) takes that out again. A tile is 64 tokens. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TILE 64
#define CHUNK 64 /* quads whose activations are interleaved at once: 16 KiB */
#define SPAN 128 /* outputs */
#define FEW 6    /* up to so many tokens, interleaving a tile costs more than it saves */
#define MIN(a, b) ((a) < (b) ? (a) : (b))

typedef struct {
    long tokens, in, out, groups;
    const float *x, *bias; /* bias may be null */
    float *y;
    const int32_t *start;
    const uint16_t *column;
    const void *value;
    const float *scale;    /* of a row's weights; int8 alone, as offset */
    const int32_t *offset;
} Product;

/* A buffer of the calling thread that only grows: large allocations are unmapped, and faulted in again, every time. */
static void *buffer(int which, size_t bytes) {
    static __thread void *held[3];
    static __thread size_t size[3];
    if (bytes > size[which]) {
        free(held[which]);
        size[which] = (bytes + 4095) & ~(size_t)4095;
        held[which] = aligned_alloc(4096, size[which]);
        if (!held[which]) abort();
    }
    return held[which];
}

static void quantize_plain(const float *x, long n, uint8_t *q, float *scale) {
    float largest = 0;
    int finite = 1;
    for (long k = 0; k < n; k++) {
        finite &= isfinite(x[k]) != 0;
        largest = fmaxf(largest, fabsf(x[k]));
    }
    float by = largest > 0 && finite ? 127.0f / largest : 0;
    for (long k = 0; k < n; k++) q[k] = (uint8_t)(lrintf(finite ? x[k] * by : 0) + 128);
    *scale = finite ? largest / 127.0f : NAN;
}

/* In plain C, for every machine; the other kernels are checked against it. */
static void int8_plain(const Product *p, int rows, int threads) {
    uint8_t *q = buffer(0, p->tokens * p->in + 4 * p->tokens);
    float *scales = (float *)buffer(1, 4 * p->tokens);
    const int8_t *value = p->value;
#pragma omp parallel for num_threads(threads)
    for (long m = 0; m < p->tokens; m++) quantize_plain(p->x + m * p->in, p->in, q + m * p->in, scales + m);
#pragma omp parallel for num_threads(threads)
    for (long g = 0; g < p->groups; g++)
        for (long m = 0; m < p->tokens; m++) {
            int32_t sum[16];
            const uint8_t *a = q + m * p->in;
            for (int r = 0; r < rows; r++) sum[r] = p->offset[g * rows + r];
            for (long quad = p->start[g]; quad < p->start[g + 1]; quad++)
                for (int r = 0; r < rows; r++)
                    for (int i = 0; i < 4; i++)
                        sum[r] += a[p->column[quad * 4 + i]] * value[(quad * rows + r) * 4 + i];
            for (int r = 0; r < rows && g * rows + r < p->out; r++) {
                long n = g * rows + r;
                p->y[m * p->out + n] = sum[r] * p->scale[n] * scales[m] + (p->bias ? p->bias[n] : 0);
            }
        }
}

static void float_plain(const Product *p, int rows, int threads) {
    const float *value = p->value;
#pragma omp parallel for num_threads(threads)
    for (long g = 0; g < p->groups; g++)
        for (long m = 0; m < p->tokens; m++) {
            float sum[16] = {0};
            const float *a = p->x + m * p->in;
            for (long c = p->start[g]; c < p->start[g + 1]; c++)
                for (int r = 0; r < rows; r++) sum[r] += a[p->column[c]] * value[c * rows + r];
            for (int r = 0; r < rows && g * rows + r < p->out; r++) {
                long n = g * rows + r;
                p->y[m * p->out + n] = sum[r] + (p->bias ? p->bias[n] : 0);
            }
        }
}

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#define HAS_AVX512 1
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#endif

static inline __mmask16 first(long n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1); }

/* A token's activations as bytes; what is not finite gives a scale of NaN. */
static void quantize(const float *x, long n, uint8_t *q, float *scale) {
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
static void transpose(const uint8_t *rows, long in, long stride, uint8_t *columns) {
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

/* Four columns of 64 tokens to four registers of 16 tokens, each with its four bytes together. */
static inline void interleave(const uint8_t *x, const uint16_t *c, __m512i *to) {
    __m512i a = _mm512_load_si512(x + c[0] * TILE), b = _mm512_load_si512(x + c[1] * TILE);
    __m512i d = _mm512_load_si512(x + c[2] * TILE), e = _mm512_load_si512(x + c[3] * TILE);
    __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
    __m512i low2 = _mm512_unpacklo_epi8(d, e), high2 = _mm512_unpackhi_epi8(d, e);
    to[0] = _mm512_unpacklo_epi16(low, low2);
    to[1] = _mm512_unpackhi_epi16(low, low2);
    to[2] = _mm512_unpacklo_epi16(high, high2);
    to[3] = _mm512_unpackhi_epi16(high, high2);
}

static inline int32_t four(const uint8_t *x, const uint16_t *c) {
    return (int32_t)(x[c[0]] | x[c[1]] << 8 | x[c[2]] << 16 | (uint32_t)x[c[3]] << 24);
}

/* Neighbouring tokens of y lie pages apart, so a tile gathers SPAN outputs of each token before they go there. */
static void copy_out(const Product *p, long m0, long tokens, long n0, const float *from) {
    long n = MIN(SPAN, p->out - n0);
    for (long t = 0; t < tokens; t++)
        for (long i = 0; i < n; i += 16)
            _mm512_mask_storeu_ps(p->y + (m0 + t) * p->out + n0 + i, first(n - i), _mm512_load_ps(from + t * SPAN + i));
}

static inline void finish(const Product *p, float *to, long n, __m512i sum, float scale) {
    __mmask16 there = first(p->out - n);
    __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_maskz_loadu_ps(there, p->scale + n));
    y = _mm512_mul_ps(y, _mm512_set1_ps(scale));
    if (p->bias) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(there, p->bias + n));
    _mm512_mask_storeu_ps(to, there, y);
}

/* 16 outputs in the lanes; a token's four bytes are broadcast. */
static void int8_group16(const Product *p, long g, float *to, long tokens, const uint8_t *x, const float *scales) {
    _Alignas(64) __m512i a[CHUNK][4], sums[TILE];
    const int8_t *value = p->value;
    __m512i offset = _mm512_loadu_si512(p->offset + 16 * g);
    for (long t = 0; t < TILE; t++) sums[t] = offset;
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
                for (int t = 0; t < 16; t++) s[t] = _mm512_dpbusd_epi32(s[t], _mm512_set1_epi32(four_of[t]), w);
            }
            for (int t = 0; t < 16; t++) sums[16 * b + t] = s[t];
        }
    }
    for (long t = 0; t < tokens; t++) finish(p, to + t * SPAN, 16 * g, sums[t], scales[t]);
}

static void int8_few16(const Product *p, long g, long m, const uint8_t *x, float scale) {
    const int8_t *value = p->value;
    __m512i s[2] = {_mm512_loadu_si512(p->offset + 16 * g), _mm512_setzero_si512()};
    for (long q = p->start[g]; q < p->start[g + 1]; q++) {
        __m512i a = _mm512_set1_epi32(four(x, p->column + 4 * q));
        s[q & 1] = _mm512_dpbusd_epi32(s[q & 1], a, _mm512_loadu_si512(value + 64 * q));
    }
    finish(p, p->y + m * p->out + 16 * g, 16 * g, _mm512_add_epi32(s[0], s[1]), scale);
}

/* The paper's: 16 tokens in the lanes, 4 outputs by 64 tokens in registers; a row's four weights are broadcast. */
static inline __attribute__((always_inline)) void int8_group4(
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
            v = _mm512_mul_ps(v, scale);
            _mm512_store_ps(y[r], p->bias ? _mm512_add_ps(v, _mm512_set1_ps(p->bias[n])) : v);
        }
        for (long t = 0; t < MIN(16, tokens - 16 * b); t++)
            for (int r = 0; r < 4; r++) to[(16 * b + t) * SPAN + r] = y[r][t];
    }
}

/* Four quads at once: lane 4 i + r is output r of quad i. */
static void int8_few4(const Product *p, long g, long m, const uint8_t *x, float scale) {
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
        p->y[m * p->out + n] = (float)(r4[r] + p->offset[n]) * p->scale[n] * scale + (p->bias ? p->bias[n] : 0);
    }
}

static void int8_avx512(const Product *p, int rows, int threads) {
    long stride = (p->in + 63) / 64 * 64, tiles = (p->tokens + TILE - 1) / TILE;
    int few = p->tokens <= FEW;
    uint8_t *bytes = buffer(0, stride * TILE * tiles);
    float *scales = buffer(1, sizeof(float) * TILE * tiles);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (long i = 0; i < tiles; i++) {
            long tokens = MIN(TILE, p->tokens - i * TILE);
            uint8_t *quantized = few ? bytes : buffer(2, stride * TILE);
            for (long t = 0; t < tokens; t++)
                quantize(p->x + (i * TILE + t) * p->in, p->in, quantized + t * stride, scales + i * TILE + t);
            if (!few) transpose(quantized, p->in, stride, bytes + i * stride * TILE);
        }
        for (long i = 0; i < tiles; i++) {
            long m0 = i * TILE, tokens = MIN(TILE, p->tokens - m0);
            const uint8_t *x = bytes + i * stride * TILE;
#pragma omp for nowait
            for (long first_group = 0; first_group < p->groups; first_group += SPAN / rows) {
                _Alignas(64) float y[TILE][SPAN];
                for (long g = first_group; g < MIN(first_group + SPAN / rows, p->groups); g++) {
                    float *to = y[0] + (g - first_group) * rows;
                    if (few)
                        for (long t = 0; t < tokens; t++)
                            (rows == 16 ? int8_few16 : int8_few4)(p, g, m0 + t, x + t * stride, scales[t]);
                    else if (rows == 16)
                        int8_group16(p, g, to, tokens, x, scales + m0);
                    else if (tokens > 48)
                        int8_group4(p, g, to, tokens, x, scales + m0, 4);
                    else if (tokens > 16)
                        int8_group4(p, g, to, tokens, x, scales + m0, 3);
                    else
                        int8_group4(p, g, to, tokens, x, scales + m0, 1);
                }
                if (!few) copy_out(p, m0, tokens, first_group * rows, y[0]);
            }
        }
    }
}

/* A tile of floats as columns [in][16] or, for groups of 4, [in][64]; zeros where there is no token, since what the
   buffer held before may be denormal numbers, which are slow. */
static void float_columns(const float *x, long in, long tokens, int width, float *columns) {
    if (tokens < width) memset(columns, 0, sizeof(float) * in * width);
    for (long k0 = 0; k0 < in; k0 += 16)
        for (long t = 0; t < tokens; t++)
            for (long k = k0; k < MIN(k0 + 16, in); k++) columns[k * width + t] = x[t * in + k];
}

static inline void float_finish(const Product *p, float *to, long n, __m512 y) {
    __mmask16 there = first(p->out - n);
    if (p->bias) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(there, p->bias + n));
    _mm512_mask_storeu_ps(to, there, y);
}

static void float_group16(const Product *p, long g, float *to, long tokens, const float *x) {
    const float *value = p->value;
    __m512 s[16];
    for (int t = 0; t < 16; t++) s[t] = _mm512_setzero_ps();
    for (long c = p->start[g]; c < p->start[g + 1]; c++) {
        __m512 w = _mm512_loadu_ps(value + 16 * c);
        const float *a = x + 16 * (long)p->column[c];
#pragma GCC unroll 16
        for (int t = 0; t < 16; t++) s[t] = _mm512_fmadd_ps(_mm512_set1_ps(a[t]), w, s[t]);
    }
    for (int t = 0; t < tokens; t++) float_finish(p, to + t * SPAN, 16 * g, s[t]);
}

static void float_few16(const Product *p, long g, long m, const float *x) {
    const float *value = p->value;
    __m512 s[4];
    for (int i = 0; i < 4; i++) s[i] = _mm512_setzero_ps();
    for (long c = p->start[g]; c < p->start[g + 1]; c++)
        s[c & 3] = _mm512_fmadd_ps(_mm512_set1_ps(x[p->column[c]]), _mm512_loadu_ps(value + 16 * c), s[c & 3]);
    float_finish(p, p->y + m * p->out + 16 * g, 16 * g, _mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3])));
}

static void float_group4(const Product *p, long g, float *to, long tokens, const float *x) {
    const float *value = p->value;
    _Alignas(64) float y[4][TILE];
    __m512 s[4][4];
    for (int r = 0; r < 4; r++)
        for (int b = 0; b < 4; b++) s[r][b] = _mm512_setzero_ps();
    for (long c = p->start[g]; c < p->start[g + 1]; c++) {
        const float *a = x + TILE * (long)p->column[c];
        for (int r = 0; r < 4; r++) {
            __m512 w = _mm512_set1_ps(value[4 * c + r]);
            for (int b = 0; b < 4; b++) s[r][b] = _mm512_fmadd_ps(_mm512_load_ps(a + 16 * b), w, s[r][b]);
        }
    }
    for (int r = 0; r < 4; r++)
        for (int b = 0; b < 4; b++) _mm512_store_ps(y[r] + 16 * b, s[r][b]);
    for (int r = 0; r < MIN(4, p->out - 4 * g); r++)
        for (long t = 0; t < tokens; t++) to[t * SPAN + r] = y[r][t] + (p->bias ? p->bias[4 * g + r] : 0);
}

static void float_few4(const Product *p, long g, long m, const float *x) {
    const float *value = p->value;
    __m128 s[2] = {_mm_setzero_ps(), _mm_setzero_ps()};
    for (long c = p->start[g]; c < p->start[g + 1]; c++)
        s[c & 1] = _mm_fmadd_ps(_mm_set1_ps(x[p->column[c]]), _mm_loadu_ps(value + 4 * c), s[c & 1]);
    float y[4];
    _mm_storeu_ps(y, _mm_add_ps(s[0], s[1]));
    for (int r = 0; r < 4 && 4 * g + r < p->out; r++)
        p->y[m * p->out + 4 * g + r] = y[r] + (p->bias ? p->bias[4 * g + r] : 0);
}

static void float_avx512(const Product *p, int rows, int threads) {
    int few = p->tokens <= FEW, width = rows == 16 ? 16 : TILE;
    long tiles = (p->tokens + width - 1) / width;
    float *columns = few ? 0 : buffer(0, sizeof(float) * p->in * width * tiles);
#pragma omp parallel num_threads(threads)
    {
        if (!few) {
#pragma omp for
            for (long i = 0; i < tiles; i++)
                float_columns(p->x + i * width * p->in, p->in, MIN(width, p->tokens - i * width), width,
                              columns + i * width * p->in);
        }
        for (long i = 0; i < tiles; i++) {
            long m0 = i * width, tokens = MIN(width, p->tokens - m0);
            const float *x = few ? p->x : columns + i * width * p->in;
#pragma omp for nowait
            for (long first_group = 0; first_group < p->groups; first_group += SPAN / rows) {
                _Alignas(64) float y[TILE][SPAN];
                for (long g = first_group; g < MIN(first_group + SPAN / rows, p->groups); g++)
                    if (few)
                        for (long t = 0; t < tokens; t++)
                            (rows == 16 ? float_few16 : float_few4)(p, g, m0 + t, p->x + (m0 + t) * p->in);
                    else
                        (rows == 16 ? float_group16 : float_group4)(p, g, y[0] + (g - first_group) * rows, tokens, x);
                if (!few) copy_out(p, m0, tokens, first_group * rows, y[0]);
            }
        }
    }
}

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/* Whether this processor runs the vector kernels. */
int block_sparse_vectors(void) {
#ifdef HAS_AVX512
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#else
    return 0;
#endif
}

void block_sparse(int vectors, int int8, int rows, int threads, long tokens, long in, long out, const float *x, float *y,
                  const float *bias, const int32_t *start, const uint16_t *column, const void *value,
                  const float *scale, const int32_t *offset) {
    Product p = {tokens, in, out, (out + rows - 1) / rows, x, bias, y, start, column, value, scale, offset};
#ifdef HAS_AVX512
    if (vectors) {
        (int8 ? int8_avx512 : float_avx512)(&p, rows, threads);
        return;
    }
#endif
    (int8 ? int8_plain : float_plain)(&p, rows, threads);
}
