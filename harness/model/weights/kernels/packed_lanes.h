/* Weights in four or eight bits, activations in floats, for a set's vectors.

   Activations are rounded to 16 bits within chunks of at most CHUNK inputs, each with its own step: what is lost is at
   most 1.5e-5 of a chunk's largest, and no channel costs another chunk's anything. The sum of a chunk fits 32 bits: 128
   x 255 x 32767 < 2^31. A lane holds the inputs of one output, such that 16 bits of it are neighbours:
       bytes    inputs 0, 2, 1, 3 of four
       nibbles  inputs 0, 2, 4, 6, 1, 3, 5, 7 of eight, from the lowest bits */

#define CHUNK 128
#define LEVELS 32767
#define BYTES_AHEAD 2048 /* by which weights are prefetched */
#define SCALES_AHEAD 4   /* and chunks by which scales are */

/* What is the same for all tokens and outputs. */
typedef struct {
    long padded, chunk, chunks, steps; /* inputs filled up to whole eights; vectors in a group of LANES outputs */
} Shape;

TARGET static Shape shape_of(const Packed *p) {
    long padded = (p->in + 7) / 8 * 8, chunk = MIN(p->group, CHUNK);
    if (p->group < p->in) /* several groups, of whole eights */
        while (p->group % chunk) chunk -= 8;
    chunk = (chunk + 7) / 8 * 8;
    return (Shape){padded, chunk, (padded + chunk - 1) / chunk, padded * p->bits / 32};
}

/* Activations of some tokens. */
typedef struct {
    int16_t *words; /* [tokens][stride] */
    float *step;    /* [tokens][chunks] */
    int32_t *sum;   /* the same */
    long stride;
} Rounded;

/* A token's activations [in] in 16 bits, with each chunk's step and sum. */
TARGET static void words_of(const Packed *p, Shape s, long m, Rounded *to) {
    const float *x = p->x + m * p->in;
    int16_t *words = to->words + m * to->stride;
    for (long c = 0; c < s.chunks; c++) {
        long k0 = c * s.chunk, n = MIN(s.chunk, p->in - k0);
        float by;
        to->step[m * s.chunks + c] = step_of(x + k0, n, LEVELS, &by);
        Ints sum = {0};
        for (long k = 0; k < n; k += LANES) {
            Ints v = rounded(load_some(x + k0 + k, n - k) * by);
            store_words(words + k0 + k, v);
            sum += v;
        }
        to->sum[m * s.chunks + c] = sum_of(sum);
    }
    for (long k = (p->in + LANES - 1) / LANES * LANES; k < to->stride; k++) words[k] = 0;
}

/* Of the inputs in each lane, the pair 2 i, 2 i + 1, as two times 16 bits. */
INLINE Ints pair_of(Ints codes, const int bits, const int i) {
    if (bits == 4) return codes >> 4 * i & 0x000f000f;
    return i ? high_bytes(codes) : low_bytes(codes);
}

/* A vector of codes for each of WIDE groups by one token after another: x are the words of the first one's inputs. */
INLINE void packed_step(const Ints *codes, const int bits, const int tokens, const int chains,
                        const int16_t *x, long stride, Ints sums[][WIDE][2]) {
#pragma GCC unroll 4
    for (int i = 0; i < 16 / bits; i++) {
        Ints pairs[WIDE];
        for (int v = 0; v < WIDE; v++) pairs[v] = pair_of(codes[v], bits, i);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
            int32_t pair;
            memcpy(&pair, x + t * stride + 2 * i, 4);
            Ints a = all_ints(pair);
            for (int v = 0; v < WIDE; v++) sums[t][v][i % chains] = dot2(sums[t][v][i % chains], a, pairs[v]);
        }
    }
}

/* WIDE vectors of outputs from group g by `tokens` tokens from m. */
INLINE void packed_tile(const Packed *p, Shape s, long g, long m, const int bits, const int tokens,
                        const Rounded *x) {
    const int chains = tokens <= 2 ? 2 : 1;
    long groups = p->group < p->in ? p->in / p->group : 1;
    Floats y[TOKENS][WIDE];
    for (int t = 0; t < tokens; t++)
        for (int v = 0; v < WIDE; v++) y[t][v] = (Floats){0};
    for (long c = 0; c < s.chunks; c++) {
        long k0 = c * s.chunk, k1 = MIN(k0 + s.chunk, s.padded), group = groups > 1 ? k0 / p->group : 0;
        Ints sums[TOKENS][WIDE][2], codes[WIDE];
        for (int t = 0; t < tokens; t++)
            for (int v = 0; v < WIDE; v++) sums[t][v][0] = sums[t][v][1] = (Ints){0};
        for (long k = k0; k < k1; k += 32 / bits) {
            for (int v = 0; v < WIDE; v++) {
                const uint8_t *from = p->weight + ((g + v) * s.steps + k * bits / 32) * 4 * LANES;
                if (m == 0) __builtin_prefetch(from + BYTES_AHEAD);
                codes[v] = load_ints(from);
            }
            packed_step(codes, bits, tokens, chains, x->words + m * x->stride + k, x->stride, sums);
        }
        for (int v = 0; v < WIDE; v++) {
            long at = ((g + v) * groups + group) * LANES;
            if (m == 0) __builtin_prefetch(p->scale + at + SCALES_AHEAD * LANES);
            Floats scale = load_floats(p->scale + at);
            Ints zero = p->zero ? load_bytes(p->zero + at) : all_ints(p->middle);
            for (int t = 0; t < tokens; t++) {
                long i = (m + t) * s.chunks + c;
                Ints sum = sums[t][v][0] + sums[t][v][1] - zero * x->sum[i];
                y[t][v] = fused(to_floats(sum) * x->step[i], scale, y[t][v]);
            }
        }
    }
    for (int v = 0; v < WIDE; v++) {
        long n = (g + v) * LANES, lanes = p->out - n;
        Floats bias = {0};
        if (p->bias) bias = load_some(p->bias + n, lanes);
        for (int t = 0; t < tokens; t++) store_some(p->y + (m + t) * p->out + n, lanes, y[t][v] + bias);
    }
}

/* All tokens, for WIDE vectors of outputs. */
INLINE void packed_rows(const Packed *p, Shape s, long g, const int bits, const Rounded *x) {
    long m = 0;
#define TILES(n) \
    for (; m + n <= p->tokens; m += n) packed_tile(p, s, g, m, bits, n, x);
    TILES(TOKENS)
    TILES(2)
    TILES(1)
#undef TILES
}

TARGET void NAME(packed)(const Packed *p) {
    Shape s = shape_of(p);
    long groups = (p->out + LANES - 1) / LANES, stride = s.padded + 32;
    Rounded x = {thread_buffer(0, 2 * p->tokens * stride), thread_buffer(1, 8 * p->tokens * s.chunks), 0, stride};
    x.sum = (int32_t *)(x.step + p->tokens * s.chunks);
#pragma omp parallel num_threads(p->threads) if (p->threads > 1)
    {
#pragma omp for
        for (long m = 0; m < p->tokens; m++) words_of(p, s, m, &x);
#pragma omp for
        for (long g = 0; g < groups; g += WIDE) {
            if (p->bits == 4)
                packed_rows(p, s, g, 4, &x);
            else
                packed_rows(p, s, g, 8, &x);
        }
    }
}

/* The weights of one group of outputs as floats, each input's LANES of them `width` after those of the one before. */
INLINE void unpacked_group(const Packed *p, Shape s, long g, const int bits, float *to, long width) {
    long groups = p->group < p->in ? p->in / p->group : 1, size = groups > 1 ? p->group : p->in;
    const uint8_t *from = p->weight + g * s.steps * 4 * LANES;
    for (long group = 0; group < groups; group++) {
        long at = (g * groups + group) * LANES, end = (group + 1) * size;
        Floats scale = load_floats(p->scale + at);
        Ints zero = p->zero ? load_bytes(p->zero + at) : all_ints(p->middle);
        for (long k = group * size; k < end; k += 32 / bits) {
            Ints codes = load_ints(from + k * bits / 32 * 4 * LANES);
#pragma GCC unroll 4
            for (int i = 0; i < 16 / bits; i++) {
                Ints pair = pair_of(codes, bits, i);
                float *row = to + (k + 2 * i) * width;
                if (k + 2 * i < end) store_floats(row, to_floats((pair << 16 >> 16) - zero) * scale);
                if (k + 2 * i + 1 < end) store_floats(row + width, to_floats((pair >> 16) - zero) * scale);
            }
        }
    }
}

/* Of `count` groups of outputs, to y [in][count][LANES]. */
TARGET void NAME(unpacked)(const Packed *p, long first, long count) {
    Shape s = shape_of(p);
#pragma omp parallel for num_threads(p->threads) if (p->threads > 1)
    for (long g = 0; g < count; g++) {
        if (p->bits == 4)
            unpacked_group(p, s, first + g, 4, p->y + g * LANES, count * LANES);
        else
            unpacked_group(p, s, first + g, 8, p->y + g * LANES, count * LANES);
    }
}
