/* Plain C, for every processor. */

#include <math.h>

#include "buffer.h"
#include "product.h"

/* A token's activations [n] as bytes; a value that is not finite gives a scale of NaN. */
static void quantize_plain(const float *x, long n, uint8_t *q, float *scale) {
    float largest = 0;
    int finite = 1;
    for (long k = 0; k < n; k++) {
        finite &= isfinite(x[k]) != 0;
        largest = fmaxf(largest, fabsf(x[k]));
    }
    float by = largest > 0 && finite ? 127.0f / largest : 0;
    for (long k = 0; k < n; k++) q[k] = (uint8_t)(lrintf(finite ? x[k] * by : 0) + 128);
    *scale = finite ? largest / 127.0f : NAN;
}

void int8_plain(const Product *p, int rows, int threads) {
    uint8_t *q = thread_buffer(0, p->tokens * p->in);
    float *scales = (float *)thread_buffer(1, 4 * p->tokens);
    const int8_t *value = p->value;
#pragma omp parallel for num_threads(threads)
    for (long m = 0; m < p->tokens; m++) quantize_plain(p->x + m * p->in, p->in, q + m * p->in, scales + m);
#pragma omp parallel for num_threads(threads)
    for (long g = 0; g < p->groups; g++)
        for (long m = 0; m < p->tokens; m++) {
            int32_t sum[16];
            const uint8_t *a = q + m * p->in;
            for (int r = 0; r < rows; r++) sum[r] = p->offset[g * rows + r];
            for (long quad = p->start[g]; quad < p->start[g + 1]; quad++)
                for (int r = 0; r < rows; r++)
                    for (int i = 0; i < 4; i++)
                        sum[r] += a[p->column[quad * 4 + i]] * value[(quad * rows + r) * 4 + i];
            for (int r = 0; r < rows && g * rows + r < p->out; r++) {
                long n = g * rows + r;
                p->y[m * p->out + n] = sum[r] * p->scale[n] * scales[m] + (p->bias ? p->bias[n] : 0);
            }
        }
}

void float_plain(const Product *p, int rows, int threads) {
    const float *value = p->value;
#pragma omp parallel for num_threads(threads)
    for (long g = 0; g < p->groups; g++)
        for (long m = 0; m < p->tokens; m++) {
            float sum[16] = {0};
            const float *a = p->x + m * p->in;
            for (long c = p->start[g]; c < p->start[g + 1]; c++)
                for (int r = 0; r < rows; r++) sum[r] += a[p->column[c]] * value[c * rows + r];
            for (int r = 0; r < rows && g * rows + r < p->out; r++) {
                long n = g * rows + r;
                p->y[m * p->out + n] = sum[r] + (p->bias ? p->bias[n] : 0);
            }
        }
}
