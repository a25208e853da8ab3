/* Dense layers with weights in few bits, on AVX512 without VNNI. */

#include "product.h"

#ifdef X86
#define NAME(kernel) kernel##_avx512
#include "set_avx512.h"

#include "rounding.h"

#include "bytes_lanes.h"
#include "packed_lanes.h"
#endif
