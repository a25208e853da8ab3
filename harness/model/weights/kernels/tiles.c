/* Int8 in blocks of 16 outputs on AMX: a group's kept inputs and its weights become small dense matrices. */

#include "product.h"

#ifdef X86
#include "avx512.h"
#if defined(__linux__) && (__has_include(<amxint8intrin.h>) || __has_include(<amxintrin.h>)) /* gcc, clang */
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AMX __attribute__((target(VNNI_FEATURES ",amx-tile,amx-int8")))

/* The compiler does not see that tile instructions read memory: it must move no write across this. */
#define WRITTEN __asm__ volatile("" ::: "memory")

AMX void tiles_on(void) {
    _Alignas(64) struct { uint8_t palette, row, zero[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    WRITTEN;
    _tile_loadconfig(&shape);
}

AMX void tiles_off(void) { _tile_release(); }

/* Whether the processor has them, and Linux lets this process use them. */
int has_tiles(void) {
    unsigned a, b, c, d = 0;
    const unsigned both = 1u << 24 | 1u << 25; /* amx-tile, amx-int8 */
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & both) == both &&
           syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
}

/* 16 x 16 numbers of four bytes, rows to columns. */
AVX512 static inline void transpose16(const __m512i *rows, __m512i *to) {
    const __m128i *from = (const __m128i *)rows; /* [16][4] */
    for (int c = 0; c < 4; c++) {
        __m512i z[4];
        for (int r = 0; r < 4; r++) { /* lane L: row 4 L + r */
            z[r] = _mm512_castsi128_si512(_mm_load_si128(from + 4 * r + c));
            z[r] = _mm512_inserti32x4(z[r], _mm_load_si128(from + 4 * (4 + r) + c), 1);
            z[r] = _mm512_inserti32x4(z[r], _mm_load_si128(from + 4 * (8 + r) + c), 2);
            z[r] = _mm512_inserti32x4(z[r], _mm_load_si128(from + 4 * (12 + r) + c), 3);
        }
        __m512i low = _mm512_unpacklo_epi32(z[0], z[1]), high = _mm512_unpackhi_epi32(z[0], z[1]);
        __m512i low2 = _mm512_unpacklo_epi32(z[2], z[3]), high2 = _mm512_unpackhi_epi32(z[2], z[3]);
        to[4 * c] = _mm512_unpacklo_epi64(low, low2);
        to[4 * c + 1] = _mm512_unpackhi_epi64(low, low2);
        to[4 * c + 2] = _mm512_unpacklo_epi64(high, high2);
        to[4 * c + 3] = _mm512_unpackhi_epi64(high, high2);
    }
}

/* Matrix tiles: 16 outputs x 64 inputs by 16 quads x 16 tokens, which is what `interleave` makes. */
AMX void int8_tiles16(const Product *p, long g, float *to, long tokens, const uint8_t *x, const float *scales) {
    _Alignas(64) __m512i quad[16], w[16], a[4][16], by_output[4][16], sums[16];
    const int8_t *value = p->value;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long q0 = p->start[g]; q0 < p->start[g + 1]; q0 += 16) {
        long quads = MIN(16, p->start[g + 1] - q0); /* beyond these, zero weights meet leftover activations */
        for (int q = 0; q < 16; q++)
            quad[q] = q < quads ? _mm512_loadu_si512(value + 64 * (q0 + q)) : _mm512_setzero_si512();
        transpose16(quad, w);
        for (long q = 0; q < quads; q++) {
            __m512i four[4];
            interleave(x, p->column + 4 * (q0 + q), four);
            for (int b = 0; b < 4; b++) a[b][q] = four[b];
        }
        WRITTEN;
        _tile_loadd(4, w, 64);
        _tile_loadd(5, a[0], 64);
        _tile_dpbsud(0, 4, 5);
        _tile_loadd(6, a[1], 64);
        _tile_dpbsud(1, 4, 6);
        _tile_loadd(7, a[2], 64);
        _tile_dpbsud(2, 4, 7);
        _tile_loadd(5, a[3], 64);
        _tile_dpbsud(3, 4, 5);
        WRITTEN;
    }
    _tile_stored(0, by_output[0], 64);
    _tile_stored(1, by_output[1], 64);
    _tile_stored(2, by_output[2], 64);
    _tile_stored(3, by_output[3], 64);
    for (int b = 0; 16 * b < tokens; b++) {
        transpose16(by_output[b], sums);
        finish16(p, g, to + 16 * b * SPAN, sums, scales + 16 * b);
    }
}
#else
int has_tiles(void) { return 0; }
void tiles_on(void) {}
void tiles_off(void) {}
void int8_tiles16(const Product *p, long g, float *to, long tokens, const uint8_t *x, const float *scales) { abort(); }
#endif
#endif
