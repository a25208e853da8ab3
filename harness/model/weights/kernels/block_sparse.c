/* The entry points: which kernels this processor runs, and the choice of one. */

#include "product.h"

/* The highest level that this processor and system run. */
int block_sparse_level(void) {
#ifdef X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma")) {
        if (!__builtin_cpu_supports("avx512vnni")) return LEVEL_AVX512;
        return has_tiles() ? LEVEL_AMX : LEVEL_VNNI;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return LEVEL_AVX2;
#endif
    return LEVEL_PLAIN;
}

/* x [tokens][in] to y [tokens][out]; bias [out] may be null. `rows` outputs make a group: 16 or 4. */
void block_sparse(int level, int int8, int rows, int threads, long tokens, long in, long out, const float *x, float *y,
                  const float *bias, const int32_t *start, const uint16_t *column, const void *value,
                  const float *scale, const int32_t *offset) {
    Product p = {tokens, in, out, (out + rows - 1) / rows, x, bias, y, start, column, value, scale, offset};
#ifdef X86
    if (int8 && level >= LEVEL_VNNI) {
        int8_vnni(&p, rows, threads, level == LEVEL_AMX);
        return;
    }
    if (!int8 && level >= LEVEL_AVX512) {
        float_avx512(&p, rows, threads);
        return;
    }
    if (level >= LEVEL_AVX2) {
        (int8 ? int8_avx2 : float_avx2)(&p, rows, threads);
        return;
    }
#endif
    (int8 ? int8_plain : float_plain)(&p, rows, threads);
}
