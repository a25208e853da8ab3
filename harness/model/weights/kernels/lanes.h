/* What is the same for vectors of every width: operators of the compiler on LANES numbers.

   A set's header defines before this LANES, TARGET, TOKENS and SHIFT, and after it what the operators do not give:
   larger, rounded, load_some, store_some, store_words, store_bytes, load_bytes, and the dot products
       fused  a b + c in one rounding, where the processor has it: the compiler may or may not, and a token's bits would
              depend on the others
       dot4   sum + four products of bytes in each lane, signed by signed, exactly
       dot2   sum + two products of 16 bits in each lane */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "buffer.h"
#include "dense.h"

#define WIDE 2 /* vectors of outputs in a register tile */
#define INLINE TARGET static inline __attribute__((always_inline))

typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef int16_t Words __attribute__((vector_size(4 * LANES)));
typedef float Floats __attribute__((vector_size(4 * LANES)));

INLINE Ints load_ints(const void *from) {
    Ints a;
    memcpy(&a, from, sizeof a);
    return a;
}
INLINE Floats load_floats(const float *from) {
    Floats a;
    memcpy(&a, from, sizeof a);
    return a;
}
INLINE void store_floats(float *to, Floats a) { memcpy(to, &a, sizeof a); }
INLINE Ints all_ints(int32_t a) { return (Ints){0} + a; }
INLINE Floats all_floats(float a) { return (Floats){0} + a; }
INLINE Floats to_floats(Ints a) { return __builtin_convertvector(a, Floats); }
INLINE Floats magnitudes(Floats a) { return (Floats)((Ints)a & 0x7fffffff); }

/* The low and the high one of the two bytes of each 16 bits, as 16 bits. */
INLINE Ints low_bytes(Ints a) { return (Ints)((Words)((Words)a << 8) >> 8); }
INLINE Ints high_bytes(Ints a) { return (Ints)((Words)a >> 8); }

INLINE float largest_of(Floats a) {
    float most = a[0];
    for (int i = 1; i < LANES; i++) most = a[i] > most ? a[i] : most;
    return most;
}
INLINE int32_t sum_of(Ints a) {
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += a[i];
    return sum;
}
