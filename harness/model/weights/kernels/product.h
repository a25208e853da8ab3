/* Products with block-sparse weights: y[m][n] = sum_k x[m][k] w[n][k] + b[n], over the columns that a group of rows keeps.

   After arXiv:2306.16601. A group is 16 or 4 outputs that keep the same inputs. Its kept inputs come in quads (int8) or
   singly (float); the last quad is filled up with zeros at input 0.
       start[g] .. start[g+1]   its quads (columns)
       column[quad][4]          the inputs
       value[quad][rows][4]     the weights
   Int8: a token's activations are rounded to -127..127 of its largest and stored with 128 added, because vpdpbusd
   multiplies unsigned by signed bytes; offset[n] = -128 sum(value of n) takes that out again. A tile is 64 tokens. */

#pragma once

#include <stdint.h>
#include <stdlib.h>

#define TILE 64
#define MIN(a, b) ((a) < (b) ? (a) : (b))

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define X86
#endif

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

/* A buffer of the calling thread, one of three. */
void *thread_buffer(int which, size_t bytes);

/* The kernels; `rows` outputs make a group. */
void int8_plain(const Product *, int rows, int threads);
void float_plain(const Product *, int rows, int threads);
#ifdef X86
void int8_avx512(const Product *, int rows, int threads, int tiled);
void float_avx512(const Product *, int rows, int threads);
int has_tiles(void);
void tiles_on(void);
void tiles_off(void);
void int8_tiles16(const Product *, long g, float *to, long tokens, const uint8_t *x, const float *scales);
#endif
