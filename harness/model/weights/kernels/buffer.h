#pragma once

#include <stddef.h>

/* A buffer of the calling thread, one of BUFFERS, aligned to a page. It keeps what it holds until it has to grow. */
#define BUFFERS 3
void *thread_buffer(int which, size_t bytes);
