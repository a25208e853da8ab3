#include "product.h"

/* A buffer of the calling thread that only grows: large allocations are unmapped, and faulted in again, every time. */
void *thread_buffer(int which, size_t bytes) {
    static __thread void *held[3];
    static __thread size_t size[3];
    if (bytes > size[which]) {
        free(held[which]);
        size[which] = (bytes + 4095) & ~(size_t)4095;
        held[which] = aligned_alloc(4096, size[which]);
        if (!held[which]) abort();
    }
    return held[which];
}

/* The best that this processor and system run: 0 plain C, 1 AVX512-VNNI, 2 with AMX. */
int block_sparse_level(void) {
#ifdef X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        return 1 + has_tiles();
#endif
    return 0;
}

void block_sparse(int level, int int8, int rows, int threads, long tokens, long in, long out, const float *x, float *y,
                  const float *bias, const int32_t *start, const uint16_t *column, const void *value,
                  const float *scale, const int32_t *offset) {
    Product p = {tokens, in, out, (out + rows - 1) / rows, x, bias, y, start, column, value, scale, offset};
#ifdef X86
    if (level) {
        if (int8)
            int8_avx512(&p, rows, threads, level == 2);
        else
            float_avx512(&p, rows, threads);
        return;
    }
#endif
    (int8 ? int8_plain : float_plain)(&p, rows, threads);
}
