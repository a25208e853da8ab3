/* Dense layers with weights in few bits, on AVX512-VNNI. */

#include "product.h"

#ifdef X86
#define SET_VNNI
#define NAME(kernel) kernel##_vnni
#include "set_avx512.h"

#include "rounding.h"

#include "bytes_lanes.h"
#include "packed_lanes.h"
#endif
