/* For every processor: the compiler's own vectors. */

#define LANES 8
#define CHUNK 4
#define TARGET
#define NAME gather_plain
#include "gather_lanes.h"
