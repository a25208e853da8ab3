/* On AVX2. */

#include "gather.h"

#ifdef X86
#define LANES 8
#define CHUNK 8
#define TARGET __attribute__((target("avx2,fma")))
#define NAME gather_avx2
#include "gather_lanes.h"
#endif
