/* Vectors for every processor: the compiler's own, 8 lanes of 32 bits. */

#pragma once

#define LANES 8
#define TARGET
#define TOKENS 2 /* tokens of a register tile */
#define SHIFT 0  /* what is added to the bytes of weights */
#include "lanes.h"

INLINE Floats larger(Floats a, Floats b) {
    for (int i = 0; i < LANES; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
INLINE Floats fused(Floats a, Floats b, Floats c) { return a * b + c; }
INLINE Ints rounded(Floats a) {
    Ints r;
    for (int i = 0; i < LANES; i++) r[i] = isfinite(a[i]) ? (int32_t)lrintf(a[i]) : 0;
    return r;
}
INLINE Floats load_some(const float *from, long n) {
    Floats a = {0};
    if (n > 0) memcpy(&a, from, sizeof(float) * MIN(n, LANES));
    return a;
}
INLINE void store_some(float *to, long n, Floats a) {
    if (n > 0) memcpy(to, &a, sizeof(float) * MIN(n, LANES));
}
INLINE void store_words(int16_t *to, Ints a) {
    for (int i = 0; i < LANES; i++) to[i] = (int16_t)a[i];
}
INLINE void store_bytes(int8_t *to, Ints a) {
    for (int i = 0; i < LANES; i++) to[i] = (int8_t)a[i];
}
INLINE Ints load_bytes(const int8_t *from) {
    Ints a;
    for (int i = 0; i < LANES; i++) a[i] = from[i];
    return a;
}

typedef struct {
    Ints byte[4];
} Weights;

INLINE Weights weights_of(Ints w) {
    return (Weights){{w << 24 >> 24, w << 16 >> 24, w << 8 >> 24, w >> 24}};
}
INLINE Ints dot4(Ints sum, Ints x, Weights w) {
    return sum + (x << 24 >> 24) * w.byte[0] + (x << 16 >> 24) * w.byte[1] + (x << 8 >> 24) * w.byte[2] +
           (x >> 24) * w.byte[3];
}
INLINE Ints dot2(Ints sum, Ints x, Ints w) { return sum + (x << 16 >> 16) * (w << 16 >> 16) + (x >> 16) * (w >> 16); }
