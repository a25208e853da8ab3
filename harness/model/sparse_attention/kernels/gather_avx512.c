/* On AVX512. */

#include "gather.h"

#ifdef X86
#define LANES 16
#define CHUNK 4
#define TARGET __attribute__((target("avx512f,avx512dq,fma")))
#define NAME gather_avx512
#include "gather_lanes.h"
#endif
