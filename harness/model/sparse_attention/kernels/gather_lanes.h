/* The kernel in vectors of LANES floats; a set defines LANES, CHUNK (vectors of sums in registers), TARGET and NAME.

   A key is a few cache lines somewhere in memory, so lines are asked for AHEAD entries before they are read, into the
   second cache: on the first one as many as are under way wait for each other. */

#pragma once

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gather.h"

#define AHEAD 32
#define INLINE TARGET static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

INLINE Floats load(const float *from) {
    Floats a;
    memcpy(&a, from, sizeof a);
    return a;
}
INLINE void store(float *to, Floats a) { memcpy(to, &a, sizeof a); }

INLINE float total(Floats a) {
    float part[LANES];
    memcpy(part, &a, sizeof a);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

/* exp(x) for x <= 0, to 2e-7 of it: 2^n exp(r), with |r| <= log(2) / 2. */
INLINE Floats exponential(Floats x) {
    const Floats low = (Floats){0} - 87.0f;
    Ints below = x <= low;
    x = (Floats)(((Ints)x & ~below) | ((Ints)low & below)); /* what is no number stays none */
    Floats n = x * 1.44269504f + 12582912.0f;               /* to the nearest whole number */
    n -= 12582912.0f;
    Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = r * 1.9875691e-4f + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665795e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 5.0000001e-1f;
    p = p * r * r + r + 1.0f;
    Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    return p * (Floats)power;
}

INLINE void ask_for(const float *from, long floats) {
    for (long i = 0; i < floats; i += 16) __builtin_prefetch(from + i, 0, 2);
}

INLINE float product(const float *a, const float *b, long n) {
    Floats even = {0}, odd = {0};
    long i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        even += load(a + i) * load(b + i);
        odd += load(a + i + LANES) * load(b + i + LANES);
    }
    for (; i + LANES <= n; i += LANES) even += load(a + i) * load(b + i);
    float rest = 0;
    for (; i < n; i++) rest += a[i] * b[i];
    return total(even + odd) + rest;
}

/* Scores of one query to probabilities, each not yet divided by what is returned: their sum. p is filled up to whole
   vectors. */
INLINE float unnormalized(float *p, long kept) {
    float largest = -INFINITY;
    int odd = 0;
    for (long j = 0; j < kept; j++) {
        largest = p[j] > largest ? p[j] : largest;
        odd |= p[j] != p[j];
    }
    if (largest == -INFINITY && !odd) { /* nothing to read */
        memset(p, 0, sizeof(float) * kept);
        return 1;
    }
    if (odd) largest = NAN;
    long whole = (kept + LANES - 1) / LANES * LANES;
    for (long j = kept; j < whole; j++) p[j] = -INFINITY;
    Floats sum = {0};
    for (long j = 0; j < whole; j += LANES) {
        Floats score = load(p + j);
        Ints there = ~(score <= (Floats){0} - 3.4e38f);
        Floats e = (Floats)((Ints)exponential(score - largest) & there);
        store(p + j, e);
        sum += e;
    }
    return total(sum);
}

/* to[c] = sum_j p[j] v[list[j]][c] / sum, for CHUNK vectors of columns, or for `vectors` fewer. */
INLINE void mean_of(const Gather *g, const float *v, const int32_t *list, const float *p, float sum, float *to,
                    int vectors) {
    Floats y[CHUNK] = {{0}};
    for (long j = 0; j < g->kept; j++) {
        if (j + AHEAD < g->kept && list[j + AHEAD] >= 0)
            ask_for(v + list[j + AHEAD] * g->value_step, vectors * LANES);
        if (list[j] < 0) continue;
        const float *value = v + list[j] * g->value_step;
        for (int i = 0; i < vectors; i++) y[i] += load(value + i * LANES) * p[j];
    }
    for (int i = 0; i < vectors; i++) store(to + i * LANES, y[i] / sum);
}

/* One query position of the heads of a kv head; p has room for kept floats in whole vectors, or is null where memory
   ran out: then no result is a number. */
TARGET static void query(const Gather *g, long row, long kv, long position, float *p) {
    long group = g->heads / g->kv_heads, list_head = g->lists > 1 ? kv : 0;
    const int32_t *list = g->list + ((row * g->lists + list_head) * g->queries + position) * g->kept;
    const float *k = g->k + row * g->key_row + kv * g->key_head;
    const float *v = g->v + row * g->value_row + kv * g->value_head;
    for (long head = kv * group; head < (kv + 1) * group; head++) {
        long at = (row * g->heads + head) * g->queries + position;
        const float *q = g->q + at * g->width;
        float *y = g->y + at * g->value_width;
        if (!p) {
            for (long c = 0; c < g->value_width; c++) y[c] = NAN;
            continue;
        }
        for (long j = 0; j < g->kept; j++) {
            if (j + AHEAD < g->kept && list[j + AHEAD] >= 0) ask_for(k + list[j + AHEAD] * g->key_step, g->width);
            p[j] = list[j] < 0 ? -INFINITY : g->scale * product(q, k + list[j] * g->key_step, g->width);
        }
        float sum = unnormalized(p, g->kept);
        long c = 0;
        for (; c + CHUNK * LANES <= g->value_width; c += CHUNK * LANES) mean_of(g, v + c, list, p, sum, y + c, CHUNK);
        for (; c + LANES <= g->value_width; c += LANES) mean_of(g, v + c, list, p, sum, y + c, 1);
        for (; c < g->value_width; c++) {
            float rest = 0;
            for (long j = 0; j < g->kept; j++) rest += list[j] < 0 ? 0 : p[j] * v[list[j] * g->value_step + c];
            y[c] = rest / sum;
        }
    }
}

void NAME(const Gather *g) {
    long positions = g->rows * g->kv_heads * g->queries;
#pragma omp parallel num_threads(g->threads)
    {
        float *p = malloc(sizeof(float) * (g->kept + LANES));
#pragma omp for schedule(static)
        for (long i = 0; i < positions; i++)
            query(g, i / (g->kv_heads * g->queries), i / g->queries % g->kv_heads, i % g->queries, p);
        free(p);
    }
}
