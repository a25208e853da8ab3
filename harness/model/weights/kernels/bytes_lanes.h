/* The product of bytes, for a set's vectors. */

#define AHEAD 32 /* quads by which weights are prefetched; the processor's own prefetching is slower */

/* A token's activations [in] as bytes, filled up with zeros to whole `quads`, and what a sum begins with. */
TARGET static void bytes_of(const Bytes *p, const float *x, long stride, int8_t *bytes, float *scale, int32_t *begin) {
    float by = 1;
    *scale = p->whole ? 1 : step_of(x, p->in, 127, &by);
    Ints sum = {0};
    for (long k = 0; k < p->in; k += LANES) {
        Ints v = rounded(load_some(x + k, p->in - k) * by);
        store_bytes(bytes + k, v);
        sum += v;
    }
    for (long k = (p->in + LANES - 1) / LANES * LANES; k < stride; k++) bytes[k] = 0;
    *begin = -SHIFT * sum_of(sum);
}

/* WIDE vectors of outputs by `tokens` tokens; x [tokens][stride]. */
INLINE void bytes_tile(const Bytes *p, long g, long m, const int tokens, const int8_t *x, long stride,
                       const float *scales, const int32_t *begins) {
    long quads = (p->in + 3) / 4;
    const int8_t *w = p->weight + g * quads * 4 * LANES;
    Ints sums[TOKENS][WIDE];
    for (int t = 0; t < tokens; t++)
        for (int v = 0; v < WIDE; v++) sums[t][v] = all_ints(begins[t]);
    for (long q = 0; q < quads; q++) {
        Weights weights[WIDE];
        for (int v = 0; v < WIDE; v++) {
            const int8_t *from = w + (v * quads + q) * 4 * LANES;
            if (m == 0) __builtin_prefetch(from + AHEAD * 4 * LANES);
            weights[v] = weights_of(load_ints(from));
        }
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
            int32_t four;
            memcpy(&four, x + t * stride + 4 * q, 4);
            Ints a = all_ints(four);
            for (int v = 0; v < WIDE; v++) sums[t][v] = dot4(sums[t][v], a, weights[v]);
        }
    }
    for (int v = 0; v < WIDE; v++) {
        long n = (g + v) * LANES, lanes = p->out - n;
        Floats scale = load_some(p->scale + n, lanes), bias = {0};
        if (p->bias) bias = load_some(p->bias + n, lanes);
        for (int t = 0; t < tokens; t++)
            store_some(p->y + (m + t) * p->out + n, lanes,
                       fused(to_floats(sums[t][v]) * scale, all_floats(scales[t]), bias));
    }
}

/* All tokens, for WIDE vectors of outputs. */
INLINE void bytes_rows(const Bytes *p, long g, const int8_t *x, long stride, const float *scales,
                       const int32_t *begins) {
    long m = 0;
#define TILES(n) \
    for (; m + n <= p->tokens; m += n) bytes_tile(p, g, m, n, x + m * stride, stride, scales + m, begins + m);
    TILES(TOKENS)
    TILES(2)
    TILES(1)
#undef TILES
}

TARGET void NAME(bytes)(const Bytes *p) {
    long groups = (p->out + LANES - 1) / LANES;
    long stride = (p->in + 63) / 64 * 64 + 64; /* no power of two, or all tokens would meet in one set of the cache */
    int8_t *x = thread_buffer(0, p->tokens * stride);
    float *scales = thread_buffer(1, 8 * p->tokens);
    int32_t *begins = (int32_t *)(scales + p->tokens);
#pragma omp parallel num_threads(p->threads) if (p->threads > 1)
    {
#pragma omp for
        for (long m = 0; m < p->tokens; m++)
            bytes_of(p, p->x + m * p->in, stride, x + m * stride, scales + m, begins + m);
#pragma omp for
        for (long g = 0; g < groups; g += WIDE) bytes_rows(p, g, x, stride, scales, begins);
    }
}
