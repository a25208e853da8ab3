#include "buffer.h"

#include <stdint.h>
#include <stdlib.h>

#define PAGE 4096

/* Buffers only grow: a large allocation is unmapped when it is freed, and its pages are faulted in again every time. */
void *thread_buffer(int which, size_t bytes) {
    static __thread void *buffer[BUFFERS];
    static __thread size_t size[BUFFERS];
    if (bytes > size[which]) {
        free(buffer[which]);
        size[which] = (bytes + PAGE - 1) & ~(size_t)(PAGE - 1);
        buffer[which] = aligned_alloc(PAGE, size[which]);
        if (!buffer[which]) abort();
    }
    return buffer[which];
}
