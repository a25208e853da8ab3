/* Attention of each query over a list of keys: y = sum_j p_j v[list_j], p = softmax(scale q . k[list_j]). */

#pragma once

#include <stdint.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define X86
#endif

/* The instruction sets that the kernel is written for, each with all before it. */
enum { LEVEL_PLAIN, LEVEL_AVX2, LEVEL_AVX512 };

typedef struct {
    long rows, heads, kv_heads, queries, kept, lists, width, value_width;
    long key_row, key_head, key_step;       /* strides, in floats; the last one is 1 */
    long value_row, value_head, value_step; /* likewise */
    const float *q;                         /* [rows][heads][queries][width] */
    const float *k, *v;
    const int32_t *list; /* [rows][lists][queries][kept]; lists: 1, or one for each kv head; below 0: none */
    float *y;            /* [rows][heads][queries][value_width] */
    float scale;
    int threads;
} Gather;

void gather_plain(const Gather *);
#ifdef X86
void gather_avx2(const Gather *);
void gather_avx512(const Gather *);
#endif
