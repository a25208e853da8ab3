/* Dense layers with weights in few bits, for every processor. */

#define NAME(kernel) kernel##_plain
#include "set_plain.h"

#include "rounding.h"

#include "bytes_lanes.h"
#include "packed_lanes.h"
