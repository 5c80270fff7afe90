/* Bilinear resizing of uint8 pictures, line by line, so that a decoder's lines need not be kept.
 *
 * Weights are 256ths, and nothing is rounded before the last step: the result is that of OpenCV's INTER_LINEAR_EXACT, to
 * which codecs/resize.py holds it, in less than half of its time. Lines are blended first, which is done for many pixels
 * at a time, and of the line that comes out the pixels wanted are picked.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define HALF 32768 /* taken from sums of 16 bits, so that they are signed ones */

/* Along one axis: which two neighbours make up each of n_out pixels, at[i] and the one behind it, and with what weights:
 * the first one's in the low 16 bits. Pixels beyond the edge are those at the edge. */
void streamkit_axis(int64_t n_in, int64_t n_out, int mirrored, int32_t *at, uint32_t *weights) {
    double step = (double)n_in / (double)n_out;
    for (int64_t i = 0; i < n_out; i++) {
        double centre = ((double)i + 0.5) * step - 0.5, before = floor(centre);
        int64_t first = (int64_t)before, second = (int64_t)rint((centre - before) * 256);
        if (first < 0 || n_in == 1)
            first = second = 0;
        else if (first > n_in - 2)
            first = n_in - 2, second = 256;
        int64_t place = mirrored ? n_out - 1 - i : i;
        at[place] = (int32_t)first;
        weights[place] = (uint32_t)(256 - second) | (uint32_t)second << 16;
    }
}

#if defined(__x86_64__)
#define BLEND_TARGETS __attribute__((target("avx2")))
#else
#define BLEND_TARGETS
#endif

#define BLEND(name)                                                                                                    \
    name(int64_t n, const uint8_t *above, const uint8_t *below, uint32_t weights, int16_t *out) {                      \
        uint16_t first = (uint16_t)weights, second = (uint16_t)(weights >> 16);                                        \
        for (int64_t i = 0; i < n; i++)                                                                                \
            out[i] = (int16_t)((uint16_t)(above[i] * first + below[i] * second) ^ HALF);                               \
    }

static void BLEND(blend_plain)
BLEND_TARGETS static void BLEND(blend_wide)

/* Two lines of n values, blended: sums of 16 bits, less HALF. */
void streamkit_blend(int64_t n, const uint8_t *above, const uint8_t *below, uint32_t weights, int16_t *out) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        blend_wide(n, above, below, weights, out);
        return;
    }
#endif
    blend_plain(n, above, below, weights, out);
}

#if defined(__x86_64__)
/* Three or four channels: a pixel is two loads' worth of neighbours, sorted into pairs, weighted and summed at once. */
__attribute__((target("ssse3"))) static void pick_colours(int64_t n, int64_t channels, const int16_t *line,
                                                          const int32_t *at, const uint32_t *weights, uint8_t *out) {
    const __m128i pairs = channels == 3 ? _mm_setr_epi8(0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, -1, -1, -1, -1)
                                        : _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    const __m128i thirds = _mm_setr_epi8(2, 6, 10, 14, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m128i rounded = _mm_set1_epi32(256 * HALF + HALF);
    for (int64_t i = 0; i < n; i++) {
        __m128i both = _mm_loadu_si128((const __m128i *)(line + at[i] * channels));
        __m128i sums = _mm_madd_epi16(_mm_shuffle_epi8(both, pairs), _mm_set1_epi32((int)weights[i]));
        int32_t pixel = _mm_cvtsi128_si32(_mm_shuffle_epi8(_mm_add_epi32(sums, rounded), thirds));
        if (channels == 3 && i == n - 1)
            memcpy(out + i * channels, &pixel, 3); /* what lies behind the line is not ours */
        else
            memcpy(out + i * channels, &pixel, 4);
    }
}
#endif

#if defined(__x86_64__)
/* One channel: four pixels at a time, whose neighbours are a load each. */
__attribute__((target("ssse3"))) static int64_t pick_grays(int64_t n, const int16_t *line, const int32_t *at,
                                                           const uint32_t *weights, uint8_t *out) {
    const __m128i thirds = _mm_setr_epi8(2, 6, 10, 14, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m128i rounded = _mm_set1_epi32(256 * HALF + HALF);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        int32_t a, b, c, d;
        memcpy(&a, line + at[i], 4);
        memcpy(&b, line + at[i + 1], 4);
        memcpy(&c, line + at[i + 2], 4);
        memcpy(&d, line + at[i + 3], 4);
        __m128i sums = _mm_madd_epi16(_mm_setr_epi32(a, b, c, d), _mm_loadu_si128((const __m128i *)(weights + i)));
        int32_t pixels = _mm_cvtsi128_si32(_mm_shuffle_epi8(_mm_add_epi32(sums, rounded), thirds));
        memcpy(out + i, &pixels, 4);
    }
    return i;
}
#endif

/* The pixels wanted of a line that `streamkit_blend` made; 16 bytes behind it are read, too. */
void streamkit_pick(int64_t n, int64_t channels, const int16_t *line, const int32_t *at, const uint32_t *weights,
                    uint8_t *out) {
    int64_t done = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("ssse3")) {
        if (channels == 3 || channels == 4) {
            pick_colours(n, channels, line, at, weights, out);
            return;
        }
        if (channels == 1)
            done = pick_grays(n, line, at, weights, out);
    }
#endif
    for (int64_t i = done; i < n; i++) {
        const int16_t *first = line + at[i] * channels;
        int32_t a = (int32_t)(weights[i] & 0xffff), b = (int32_t)(weights[i] >> 16);
        for (int64_t c = 0; c < channels; c++)
            out[i * channels + c] = (uint8_t)((a * first[c] + b * first[c + channels] + 256 * HALF + HALF) >> 16);
    }
}

/* A picture, `stride` bytes from line to line, resized into `out`; 0 where there is no memory for it. */
int64_t streamkit_resize(int64_t height, int64_t width, int64_t channels, const uint8_t *pixels, int64_t stride,
                         int64_t out_height, int64_t out_width, uint8_t *out) {
    int64_t n = width * channels, n_at = out_height + out_width;
    int32_t *at = malloc((size_t)n_at * 8 + (size_t)(n + 2 * channels + 16) * 2);
    if (!at)
        return 0;
    uint32_t *weights = (uint32_t *)(at + n_at);
    int16_t *line = (int16_t *)(weights + n_at);
    memset(line + n, 0, (size_t)(2 * channels + 16) * 2);
    streamkit_axis(width, out_width, 0, at, weights);
    streamkit_axis(height, out_height, 0, at + out_width, weights + out_width);
    for (int64_t y = 0; y < out_height; y++) {
        const uint8_t *above = pixels + at[out_width + y] * stride;
        streamkit_blend(n, above, height > 1 ? above + stride : above, weights[out_width + y], line);
        streamkit_pick(out_width, channels, line, at, weights, out + y * out_width * channels);
    }
    free(at);
    return 1;
}
