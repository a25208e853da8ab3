/* Dense layers with weights in few bits, on AVX2. */

#include "product.h"

#ifdef X86
#define NAME(kernel) kernel##_avx2
#include "set_avx2.h"

#include "rounding.h"

#include "bytes_lanes.h"
#include "packed_lanes.h"
#endif
