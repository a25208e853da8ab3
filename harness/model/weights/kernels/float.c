/* Floats on AVX512. */

#include "buffer.h"
#include "product.h"

#ifdef X86
#include "avx512.h"

/* Tokens [tokens][in] to columns [in][width]: 16 wide, or 64 for groups of 4. Missing tokens are zeros, because the
   buffer's old contents may be denormal numbers, which are slow. */
AVX512 static void float_columns(const float *x, long in, long tokens, int width, float *columns) {
    if (tokens < width) memset(columns, 0, sizeof(float) * in * width);
    for (long k0 = 0; k0 < in; k0 += 16)
        for (long t = 0; t < tokens; t++)
            for (long k = k0; k < MIN(k0 + 16, in); k++) columns[k * width + t] = x[t * in + k];
}

AVX512 static inline void float_finish(const Product *p, float *to, long n, __m512 y) {
    __mmask16 lanes = first(p->out - n);
    if (p->bias) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, p->bias + n));
    _mm512_mask_storeu_ps(to, lanes, y);
}

/* 16 outputs in the lanes, a register for each of 16 tokens; x [in][16]. */
AVX512 static void float_group16(const Product *p, long g, float *to, long tokens, const float *x) {
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

/* 16 outputs of one token x [in]; four sums in turn hide the latency of an addition. */
AVX512 static void float_few16(const Product *p, long g, long m, const float *x) {
    const float *value = p->value;
    __m512 s[4];
    for (int i = 0; i < 4; i++) s[i] = _mm512_setzero_ps();
    for (long c = p->start[g]; c < p->start[g + 1]; c++)
        s[c & 3] = _mm512_fmadd_ps(_mm512_set1_ps(x[p->column[c]]), _mm512_loadu_ps(value + 16 * c), s[c & 3]);
    __m512 sum = _mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3]));
    float_finish(p, p->y + m * p->out + 16 * g, 16 * g, sum);
}

/* 16 tokens in the lanes, 4 outputs by 64 tokens in registers; x [in][TILE]. */
AVX512 static void float_group4(const Product *p, long g, float *to, long tokens, const float *x) {
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

/* 4 outputs of one token x [in]. */
AVX512 static void float_few4(const Product *p, long g, long m, const float *x) {
    const float *value = p->value;
    __m128 s[2] = {_mm_setzero_ps(), _mm_setzero_ps()};
    for (long c = p->start[g]; c < p->start[g + 1]; c++)
        s[c & 1] = _mm_fmadd_ps(_mm_set1_ps(x[p->column[c]]), _mm_loadu_ps(value + 4 * c), s[c & 1]);
    float y[4];
    _mm_storeu_ps(y, _mm_add_ps(s[0], s[1]));
    for (int r = 0; r < 4 && 4 * g + r < p->out; r++)
        p->y[m * p->out + 4 * g + r] = y[r] + (p->bias ? p->bias[4 * g + r] : 0);
}

/* SPAN outputs of a tile's tokens. */
AVX512 static void float_span(const Product *p, int rows, long first_group, long m0, long tokens, const float *x) {
    _Alignas(64) float y[TILE][SPAN];
    for (long g = first_group; g < MIN(first_group + SPAN / rows, p->groups); g++)
        (rows == 16 ? float_group16 : float_group4)(p, g, y[0] + (g - first_group) * rows, tokens, x);
    copy_out(p, m0, tokens, first_group * rows, y[0]);
}

AVX512 void float_avx512(const Product *p, int rows, int threads) {
    if (p->tokens <= FEW) {
#pragma omp parallel for num_threads(threads)
        for (long g = 0; g < p->groups; g++)
            for (long t = 0; t < p->tokens; t++) (rows == 16 ? float_few16 : float_few4)(p, g, t, p->x + t * p->in);
        return;
    }
    long width = rows == 16 ? 16 : TILE, tiles = (p->tokens + width - 1) / width;
    float *columns = thread_buffer(0, sizeof(float) * p->in * width * tiles);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (long i = 0; i < tiles; i++)
            float_columns(p->x + i * width * p->in, p->in, MIN(width, p->tokens - i * width), width,
                          columns + i * width * p->in);
        for (long i = 0; i < tiles; i++)
#pragma omp for nowait
            for (long g = 0; g < p->groups; g += SPAN / rows)
                float_span(p, rows, g, i * width, MIN(width, p->tokens - i * width), columns + i * width * p->in);
    }
}

#endif
