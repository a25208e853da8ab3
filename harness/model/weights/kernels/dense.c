/* The entry points of dense layers with weights in few bits; `level` is at most what block_sparse_level gives. */

#include "dense.h"

#ifdef X86
#define CHOSEN(kernel) \
    (level >= LEVEL_VNNI     ? kernel##_vnni \
     : level == LEVEL_AVX512 ? kernel##_avx512 \
     : level == LEVEL_AVX2   ? kernel##_avx2 \
                             : kernel##_plain)
#else
#define CHOSEN(kernel) kernel##_plain
#endif

/* x [tokens][in] to y [tokens][out]; bias [out] may be null. */
void bytes(int level, int threads, int whole, long tokens, long in, long out, const float *x, float *y,
           const float *bias, const int8_t *weight, const float *scale) {
    Bytes p = {tokens, in, out, x, bias, y, weight, scale, threads, whole};
    CHOSEN(bytes)(&p);
}

void packed(int level, int threads, int bits, int middle, long tokens, long in, long out, long group, const float *x,
            float *y, const float *bias, const uint8_t *weight, const float *scale, const int8_t *zero) {
    Packed p = {tokens, in, out, group, x, bias, y, weight, scale, zero, middle, bits, threads};
    CHOSEN(packed)(&p);
}

/* Weights of `count` groups of outputs from the `first` one as floats, to [in][count][LANES]. */
void unpack(int level, int threads, int bits, int middle, long in, long group, long first, long count, float *to,
            const uint8_t *weight, const float *scale, const int8_t *zero) {
    Packed p = {0, in, 0, group, NULL, NULL, to, weight, scale, zero, middle, bits, threads};
    CHOSEN(unpacked)(&p, first, count);
}
