/* The entry points: which kernels this processor runs, and the choice of one. */

#include "gather.h"

/* The highest level that this processor and system run. */
int gather_level(void) {
#ifdef X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma"))
        return LEVEL_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return LEVEL_AVX2;
#endif
    return LEVEL_PLAIN;
}

/* `sizes` and `strides` are the members of Gather in their order, from rows and from key_row. */
void gather(int level, int threads, const long *sizes, const long *strides, float scale, const float *q, const float *k,
            const float *v, const int32_t *list, float *y) {
    Gather g = {sizes[0],   sizes[1],   sizes[2],   sizes[3],   sizes[4],   sizes[5], sizes[6], sizes[7],
                strides[0], strides[1], strides[2], strides[3], strides[4], strides[5], q,      k,
                v,          list,       y,          scale,      threads};
#ifdef X86
    if (level >= LEVEL_AVX512) {
        gather_avx512(&g);
        return;
    }
    if (level >= LEVEL_AVX2) {
        gather_avx2(&g);
        return;
    }
#endif
    gather_plain(&g);
}
