/* Linear layers with weights in few bits: y[m][n] = sum_k x[m][k] w[n][k] + b[n].

   Weights come in groups of LANES outputs, 8 or 16 as the set has them, an even number of groups filled up with zeros:
       bytes    [groups][in / 4][LANES][4]    of inputs 4 q .. 4 q + 3
       nibbles  [groups][in / 8][LANES][4]    of inputs 8 q .. 8 q + 7; see packed_lanes.h for their order */

#pragma once

#include <stdint.h>

#include "product.h"

/* Both sides in bytes: a token's activations are rounded to -127..127 of its largest, and sums are exact. */
typedef struct {
    long tokens, in, out;
    const float *x;       /* [tokens][in] */
    const float *bias;    /* [out], or null */
    float *y;             /* [tokens][out] */
    const int8_t *weight; /* bytes, with the set's SHIFT added */
    const float *scale;   /* [out] */
    int threads;
    int whole; /* x are whole numbers, -127..127: they stay as they are */
} Bytes;

/* Weights alone: w = (code - zero) scale, a scale and a zero for each `group` inputs. */
typedef struct {
    long tokens, in, out, group;
    const float *x, *bias;
    float *y;
    const uint8_t *weight; /* signed bytes, or nibbles 0..15 */
    const float *scale;    /* [groups][in / group][LANES] */
    const int8_t *zero;    /* the same, or null: it is `middle` everywhere */
    int middle, bits, threads;
} Packed;

/* The kernels, by set. */
#define KERNELS(set)                   \
    void bytes_##set(const Bytes *);   \
    void packed_##set(const Packed *); \
    void unpacked_##set(const Packed *, long first, long count);
KERNELS(plain)
#ifdef X86
KERNELS(avx2)
KERNELS(avx512)
KERNELS(vnni)
#endif
