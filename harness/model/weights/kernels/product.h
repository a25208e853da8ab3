/* Products with block-sparse weights: y[m][n] = sum_k x[m][k] w[n][k] + b[n], over the columns that a group of rows keeps.

   After arXiv:2306.16601. A group is 16 or 4 outputs that keep the same inputs. Its kept inputs come in quads (int8) or
   singly (float); the last quad is filled up with zeros at input 0.
       start[g] .. start[g+1]   its quads (int8) or columns (float)
       column[quad][4]          the inputs; float: column[column]
       value[quad][rows][4]     the weights; float: value[column][rows]
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

/* The instruction sets that kernels are written for, each with all before it. */
enum { LEVEL_PLAIN, LEVEL_AVX2, LEVEL_AVX512, LEVEL_VNNI, LEVEL_AMX };

typedef struct {
    long tokens, in, out, groups;
    const float *x;    /* [tokens][in] */
    const float *bias; /* [out], or null */
    float *y;          /* [tokens][out] */
    const int32_t *start;
    const uint16_t *column;
    const void *value;
    const float *scale;    /* [out], of a row's weights; int8 alone */
    const int32_t *offset; /* [groups * rows]; int8 alone */
} Product;

/* The kernels; `rows` outputs make a group. */
void int8_plain(const Product *, int rows, int threads);
void float_plain(const Product *, int rows, int threads);
#ifdef X86
void int8_avx2(const Product *, int rows, int threads);
void float_avx2(const Product *, int rows, int threads);
void int8_vnni(const Product *, int rows, int threads, int tiled);
void float_avx512(const Product *, int rows, int threads);
int has_tiles(void);
void tiles_on(void);
void tiles_off(void);
void int8_tiles16(const Product *, long g, float *to, long tokens, const uint8_t *x, const float *scales);
#endif
