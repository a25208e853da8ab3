/* Block-sparse floats on AVX2. */

#include "product.h"

#ifdef X86
#include "set_avx2.h"
#include "span.h"

#define SIX 6    /* tokens of a register tile with 16 outputs in two vectors */
#define ACROSS 16 /* tokens in the lanes of two vectors, for groups of 4 */
#define BLOCK 96  /* tokens that a span's weights serve while the second cache holds them: whole tiles of both kinds */

/* Tokens [tokens][in] to columns [in][width]. Missing tokens are zeros, because the buffer's old contents may be
   denormal numbers, which are slow. */
TARGET static void columns_of(const float *x, long in, long tokens, int width, float *columns) {
    if (tokens < width) memset(columns, 0, sizeof(float) * in * width);
    for (long k0 = 0; k0 < in; k0 += 16)
        for (long t = 0; t < tokens; t++)
            for (long k = k0; k < MIN(k0 + 16, in); k++) columns[k * width + t] = x[t * in + k];
}

INLINE Floats biased(const Product *p, long n, Floats y) {
    return p->bias ? y + load_some(p->bias + n, p->out - n) : y;
}

/* 16 outputs in the lanes of two vectors, for each of SIX tokens; x [in][SIX]. */
TARGET static void group16(const Product *p, long g, float *to, long tokens, const float *x) {
    const float *value = p->value;
    Floats s[SIX][2];
    memset(s, 0, sizeof s);
    for (long c = p->start[g]; c < p->start[g + 1]; c++) {
        Floats w[2] = {load_floats(value + 16 * c), load_floats(value + 16 * c + LANES)};
        const float *a = x + SIX * (long)p->column[c];
#pragma GCC unroll 6
        for (int t = 0; t < SIX; t++)
            for (int h = 0; h < 2; h++) s[t][h] += w[h] * a[t];
    }
    for (long t = 0; t < tokens; t++)
        for (int h = 0; h < 2; h++)
            store_floats(to + t * SPAN + LANES * h, biased(p, 16 * g + LANES * h, s[t][h]));
}

/* 16 outputs of one token x [in]; four sums in turn hide the latency of an addition. */
TARGET static void few16(const Product *p, long g, long m, const float *x) {
    const float *value = p->value;
    Floats s[4][2];
    memset(s, 0, sizeof s);
    long c = p->start[g], end = p->start[g + 1];
    for (; c + 4 <= end; c += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            for (int h = 0; h < 2; h++)
                s[i][h] += load_floats(value + 16 * (c + i) + LANES * h) * x[p->column[c + i]];
    for (; c < end; c++)
        for (int h = 0; h < 2; h++) s[0][h] += load_floats(value + 16 * c + LANES * h) * x[p->column[c]];
    for (int h = 0; h < 2; h++) {
        long n = 16 * g + LANES * h;
        store_some(p->y + m * p->out + n, p->out - n, biased(p, n, (s[0][h] + s[1][h]) + (s[2][h] + s[3][h])));
    }
}

/* ACROSS tokens in the lanes of two vectors, 4 outputs; x [in][ACROSS]. */
TARGET static void group4(const Product *p, long g, float *to, long tokens, const float *x) {
    const float *value = p->value;
    Floats s[4][2];
    memset(s, 0, sizeof s);
    for (long c = p->start[g]; c < p->start[g + 1]; c++) {
        const float *a = x + ACROSS * (long)p->column[c];
        Floats v[2] = {load_floats(a), load_floats(a + LANES)};
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
            for (int h = 0; h < 2; h++) s[r][h] += v[h] * value[4 * c + r];
    }
    for (int r = 0; r < MIN(4, p->out - 4 * g); r++)
        for (long t = 0; t < tokens; t++)
            to[t * SPAN + r] = s[r][t / LANES][t % LANES] + (p->bias ? p->bias[4 * g + r] : 0);
}

/* 4 outputs of one token x [in]. */
TARGET static void few4(const Product *p, long g, long m, const float *x) {
    const float *value = p->value;
    __m128 s[2] = {_mm_setzero_ps(), _mm_setzero_ps()};
    for (long c = p->start[g]; c < p->start[g + 1]; c++)
        s[c & 1] = _mm_fmadd_ps(_mm_set1_ps(x[p->column[c]]), _mm_loadu_ps(value + 4 * c), s[c & 1]);
    float y[4];
    _mm_storeu_ps(y, _mm_add_ps(s[0], s[1]));
    for (int r = 0; r < 4 && 4 * g + r < p->out; r++)
        p->y[m * p->out + 4 * g + r] = y[r] + (p->bias ? p->bias[4 * g + r] : 0);
}

/* SPAN outputs of tokens m0 .. m0 + tokens, from their tiles x [tiles][in][width]. */
TARGET static void span(const Product *p, int rows, long first, long m0, long tokens, long width, const float *x) {
    float y[ACROSS][SPAN];
    for (long m = 0; m < tokens; m += width) {
        long count = MIN(width, tokens - m);
        for (long g = first; g < MIN(first + SPAN / rows, p->groups); g++)
            (rows == 16 ? group16 : group4)(p, g, y[0] + (g - first) * rows, count, x + m * p->in);
        copy_out(p, m0 + m, count, first * rows, y[0]);
    }
}

TARGET void float_avx2(const Product *p, int rows, int threads) {
    if (p->tokens <= FEW) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (long g = 0; g < p->groups; g++)
            for (long t = 0; t < p->tokens; t++) (rows == 16 ? few16 : few4)(p, g, t, p->x + t * p->in);
        return;
    }
    long width = rows == 16 ? SIX : ACROSS, tiles = (p->tokens + width - 1) / width;
    float *columns = thread_buffer(0, sizeof(float) * p->in * width * tiles);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for
        for (long i = 0; i < tiles; i++)
            columns_of(p->x + i * width * p->in, p->in, MIN(width, p->tokens - i * width), (int)width,
                       columns + i * width * p->in);
        for (long m = 0; m < p->tokens; m += BLOCK)
#pragma omp for nowait
            for (long g = 0; g < p->groups; g += SPAN / rows)
                span(p, rows, g, m, MIN(BLOCK, p->tokens - m), width, columns + m * p->in);
    }
}

#endif
