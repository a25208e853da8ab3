/* What the block-sparse vector kernels share. */

#pragma once

#include <string.h>

#include "product.h"

#define SPAN 128 /* outputs that a tile gathers before they go to y */
#define FEW 6    /* up to so many tokens, interleaving a tile costs more than it saves */

/* Neighbouring tokens of y lie pages apart, so a tile gathers SPAN outputs of each token before they go there. */
static inline void copy_out(const Product *p, long m0, long tokens, long n0, const float *from) {
    long n = MIN(SPAN, p->out - n0);
    for (long t = 0; t < tokens; t++) memcpy(p->y + (m0 + t) * p->out + n0, from + t * SPAN, sizeof(float) * n);
}

/* The bytes of four inputs c of one token, as a lane takes them. */
static inline int32_t four(const uint8_t *x, const uint16_t *c) {
    return (int32_t)(x[c[0]] | x[c[1]] << 8 | x[c[2]] << 16 | (uint32_t)x[c[3]] << 24);
}
