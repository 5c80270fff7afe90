/* Put rows together from the pieces that they were stored in: one call a batch, outside Python's lock.
 *
 * native.py loads this with ranges.c, and does the same in NumPy where neither was built. Pieces of one byte are usual
 * (chunks that hold one colour each), and a loop over addresses then costs a tenth of what general strided copying does.
 */
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define AT_ONCE 4 /* rows: the place of a run is looked up once for all of them, and their misses overlap */

#define GATHER(type)                                                                                                   \
    for (int64_t k = 0; k < n_runs; k++) {                                                                             \
        int64_t at = starts[k], place = k * (int64_t)sizeof(type);                                                     \
        type a, b, c, d;                                                                                               \
        memcpy(&a, from[0] + at, sizeof a);                                                                            \
        memcpy(&b, from[1] + at, sizeof b);                                                                            \
        memcpy(&c, from[2] + at, sizeof c);                                                                            \
        memcpy(&d, from[3] + at, sizeof d);                                                                            \
        memcpy(to[0] + place, &a, sizeof a);                                                                           \
        memcpy(to[1] + place, &b, sizeof b);                                                                           \
        memcpy(to[2] + place, &c, sizeof c);                                                                           \
        memcpy(to[3] + place, &d, sizeof d);                                                                           \
    }                                                                                                                  \
    break

#if defined(__x86_64__)
/* Whether runs of one byte are those of pictures whose chunks hold one colour each: red, green, blue, from three places
 * that go on byte by byte for four pixels at least. */
static int are_colours(int64_t n_runs, const int32_t *starts) {
    if (n_runs % 12 || !__builtin_cpu_supports("ssse3"))
        return 0;
    for (int64_t k = 0; k < n_runs; k++)
        if (starts[k] != starts[k - k % 12 + k % 3] + k % 12 / 3)
            return 0;
    return 1;
}

/* Four pixels at a time: twelve bytes by three loads and one shuffle. */
__attribute__((target("ssse3"))) static void gather_colours(const char *from, char *to, int64_t n_runs,
                                                            const int32_t *starts) {
    const __m128i mixed = _mm_setr_epi8(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, 12, 13, 14, 15);
    for (int64_t k = 0; k < n_runs; k += 12) {
        int32_t red, green, blue;
        memcpy(&red, from + starts[k], 4);
        memcpy(&green, from + starts[k + 1], 4);
        memcpy(&blue, from + starts[k + 2], 4);
        __m128i pixels = _mm_shuffle_epi8(_mm_setr_epi32(red, green, blue, 0), mixed);
        memcpy(to + k, &pixels, 12);
    }
}
#endif

/* Row i, at out + i * stride, is put together from runs that begin at rows[i] + starts[k]. They lie far apart, so the
 * lines of the next rows are fetched meanwhile: about one at lines[j] each. */
void streamkit_gather(int64_t n, const char *const *rows, char *out, int64_t stride, int64_t n_runs,
                      const int32_t *starts, int64_t run_nbytes, int64_t n_lines, const int32_t *lines) {
#if defined(__x86_64__)
    int colours = run_nbytes == 1 && are_colours(n_runs, starts);
#endif
    for (int64_t i = 0; i < n; i += AT_ONCE) {
        const char *from[AT_ONCE];
        char *to[AT_ONCE];
        for (int64_t j = 0; j < AT_ONCE; j++) { /* behind the last row, that one again */
            int64_t row = i + j < n ? i + j : n - 1;
            from[j] = rows[row];
            to[j] = out + row * stride;
        }
        for (int64_t ahead = i + AT_ONCE; ahead < n && ahead < i + 2 * AT_ONCE; ahead++)
            for (int64_t j = 0; j < n_lines; j++)
                __builtin_prefetch(rows[ahead] + lines[j]);
#if defined(__x86_64__)
        if (colours) {
            for (int64_t j = 0; j < AT_ONCE && i + j < n; j++)
                gather_colours(from[j], to[j], n_runs, starts);
            continue;
        }
#endif
        switch (run_nbytes) {
        case 1:
            GATHER(uint8_t);
        case 2:
            GATHER(uint16_t);
        case 4:
            GATHER(uint32_t);
        case 8:
            GATHER(uint64_t);
        default:
            for (int64_t j = 0; j < AT_ONCE && i + j < n; j++)
                for (int64_t k = 0; k < n_runs; k++)
                    memcpy(to[j] + k * run_nbytes, from[j] + starts[k], (size_t)run_nbytes);
        }
    }
}
