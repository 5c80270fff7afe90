/* Bring many ranges of files into memory and check their crc32c: one call a batch, outside Python's lock.
 *
 * native.py loads this with ctypes where it was built (a C compiler is enough, no Python headers are used), and does the
 * same range by range in Python where it was not; tests/test_native.py holds both to each other.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define WIDE_TARGET __attribute__((target("avx512f,vpclmulqdq,sse4.2")))
#define CRC_TARGET __attribute__((target("sse4.2")))
#define CRC8(crc, byte) _mm_crc32_u8((uint32_t)(crc), (byte))
#define CRC64(crc, word) _mm_crc32_u64((crc), (word))
#else
#define CRC_TARGET
#define CRC8(crc, byte) (crc)
#define CRC64(crc, word) (crc)
#endif

#define POLYNOMIAL 0x82f63b78u /* Castagnoli, bit-reversed. Source: RFC 3720, appendix B.4 */
#define LONG_BLOCK 2048
#define SHORT_BLOCK 256
#define WIDE_MIN 1024       /* bytes from which setting up the wide sum pays */
#define CACHED_NBYTES 1048576 /* a batch larger than this has left the core's own cache when it is used */
#define MAX_IOV 512
#define PAGE_NBYTES 4096
#define ROWS_AHEAD 2         /* a range is fetched while the second before it is copied */
#define PAGES_ROWS_AHEAD 4   /* and the first line of its pages, with their addresses, before that */
#define AHEAD_NBYTES 65536   /* of a range, at most: of longer ones the processor fetches the rest by itself */
#define PAGES_NBYTES 16384   /* likewise, of those first lines */
#define PIECE_NBYTES 262144 /* read and summed at a time in a pass over a file: what the core's own cache holds */

/* The instruction takes three cycles but starts one a cycle, so three neighbouring blocks are summed at once; a block's
 * sum is moved past the blocks after it by the linear map "append that many zero bytes", kept as four byte tables. */
static uint32_t zeros_long[4][256], zeros_short[4][256];

static uint32_t times(const uint32_t *matrix, uint32_t vector) {
    uint32_t sum = 0;
    for (; vector; vector >>= 1, matrix++)
        if (vector & 1)
            sum ^= *matrix;
    return sum;
}

static void square(uint32_t *out, const uint32_t *matrix) {
    for (int i = 0; i < 32; i++)
        out[i] = times(matrix, matrix[i]);
}

static void make_zeros(uint32_t table[4][256], size_t nbytes) {
    uint32_t a[32], b[32];
    a[0] = POLYNOMIAL; /* the map for one zero bit; squared three times, for one zero byte */
    for (int i = 1; i < 32; i++)
        a[i] = 1u << (i - 1);
    square(b, a);
    square(a, b);
    square(b, a);
    memcpy(a, b, sizeof a);
    for (; nbytes > 1; nbytes >>= 1) { /* block sizes are powers of two */
        square(b, a);
        memcpy(a, b, sizeof a);
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int k = 0; k < 4; k++)
            table[k][byte] = times(a, byte << (8 * k));
}

#if defined(__x86_64__)
/* Where the processor multiplies polynomials 512 bits at a time: fold four registers over the data by the maps "move 256
 * bytes on" and "move 64 bytes on", then sum the 64 bytes left. Three times as fast again.
 * Source: Gopal et al., "Fast CRC Computation Using PCLMULQDQ" (Intel, 2009), reflected form. */
static uint64_t fold_by_256[2], fold_by_64[2];
static int wide;

/* x to the n modulo the polynomial, reflected into the upper half of a word as the multiplication wants it. */
static uint64_t power(int n) {
    uint32_t r = 0x80000000u;
    while (n--)
        r = r >> 1 ^ (r & 1 ? POLYNOMIAL : 0);
    return (uint64_t)r << 32;
}

WIDE_TARGET static inline __m512i fold(__m512i sum, __m512i by, __m512i next) {
    __m512i low = _mm512_clmulepi64_epi128(sum, by, 0x00), high = _mm512_clmulepi64_epi128(sum, by, 0x11);
    return _mm512_ternarylogic_epi64(low, high, next, 0x96); /* xor of all three */
}

WIDE_TARGET static inline __m512i twice_a_lane(const uint64_t *pair) {
    return _mm512_set_epi64(pair[1], pair[0], pair[1], pair[0], pair[1], pair[0], pair[1], pair[0]);
}

/* The sum of n bytes, a multiple of 256 and not 0. With `to`, they are copied there on the way, which saves reading them
 * twice; past the caches when told so (`to` on a 64-byte border), as a large batch is out of them before anyone looks.
 * `later` is where `n_later` bytes begin that are wanted soon: they are fetched meanwhile, line by line, and no nearer than
 * to the core's second cache. Asked for in the first, they wait for the few places that misses have there: 16 KiB rows in
 * random order 1.7 us each, so 1.4. */
WIDE_TARGET static uint64_t wide_blocks(uint64_t crc, const char *at, size_t n, char *to, int past_caches,
                                        const char *later, size_t n_later) {
    __m512i far = twice_a_lane(fold_by_256), near = twice_a_lane(fold_by_64);
    __m512i sum[4], data[4];
    for (size_t done = 0; done < n; done += 256) {
        for (int k = 0; k < 4; k++)
            data[k] = _mm512_loadu_si512(at + done + 64 * k);
        if (done < n_later)
            for (int k = 0; k < 4; k++)
                _mm_prefetch(later + done + 64 * k, _MM_HINT_T1);
        if (to && past_caches)
            for (int k = 0; k < 4; k++)
                _mm512_stream_si512((__m512i *)(to + done + 64 * k), data[k]);
        else if (to)
            for (int k = 0; k < 4; k++)
                _mm512_storeu_si512(to + done + 64 * k, data[k]);
        if (done == 0)
            data[0] = _mm512_xor_si512(data[0], _mm512_set_epi64(0, 0, 0, 0, 0, 0, 0, (long long)crc));
        for (int k = 0; k < 4; k++)
            sum[k] = done == 0 ? data[k] : fold(sum[k], far, data[k]);
    }
    uint64_t left[8], whole = 0;
    _mm512_storeu_si512(left, fold(fold(fold(sum[0], near, sum[1]), near, sum[2]), near, sum[3]));
    for (int i = 0; i < 8; i++)
        whole = CRC64(whole, left[i]);
    return whole;
}
#endif

__attribute__((constructor)) static void start(void) {
    make_zeros(zeros_long, LONG_BLOCK);
    make_zeros(zeros_short, SHORT_BLOCK);
#if defined(__x86_64__)
    wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
    fold_by_256[0] = power(2048 + 63), fold_by_256[1] = power(2048 - 1);
    fold_by_64[0] = power(512 + 63), fold_by_64[1] = power(512 - 1);
#endif
}

static inline uint64_t past_zeros(uint32_t table[4][256], uint64_t crc) {
    return table[0][crc & 255] ^ table[1][crc >> 8 & 255] ^ table[2][crc >> 16 & 255] ^ table[3][crc >> 24 & 255];
}

CRC_TARGET static uint64_t three_blocks(uint64_t crc, const unsigned char *at, size_t block, uint32_t table[4][256]) {
    uint64_t second = 0, third = 0, word;
    for (size_t i = 0; i < block; i += 8) {
        memcpy(&word, at + i, 8);
        crc = CRC64(crc, word);
        memcpy(&word, at + block + i, 8);
        second = CRC64(second, word);
        memcpy(&word, at + 2 * block + i, 8);
        third = CRC64(third, word);
    }
    return past_zeros(table, past_zeros(table, crc) ^ second) ^ third;
}

/* Carry the sum `crc` on over n bytes; it begins as, and at the end is, the complement of the crc32c. */
CRC_TARGET static uint64_t carry_on(uint64_t crc, const unsigned char *at, size_t n) {
    uint64_t word;
#if defined(__x86_64__)
    if (wide && n >= WIDE_MIN) {
        size_t whole = n & ~(size_t)255;
        crc = wide_blocks(crc, (const char *)at, whole, NULL, 0, NULL, 0);
        n -= whole, at += whole;
    }
#endif
    for (; n >= 3 * LONG_BLOCK; n -= 3 * LONG_BLOCK, at += 3 * LONG_BLOCK)
        crc = three_blocks(crc, at, LONG_BLOCK, zeros_long);
    for (; n >= 3 * SHORT_BLOCK; n -= 3 * SHORT_BLOCK, at += 3 * SHORT_BLOCK)
        crc = three_blocks(crc, at, SHORT_BLOCK, zeros_short);
    for (; n >= 8; n -= 8, at += 8) {
        memcpy(&word, at, 8);
        crc = CRC64(crc, word);
    }
    for (; n; n--)
        crc = CRC8(crc, *at++);
    return crc;
}

static uint32_t crc32c(const char *at, size_t n) {
    return (uint32_t)carry_on(0xffffffffu, (const unsigned char *)at, n) ^ 0xffffffffu;
}

/* Copy n bytes and return their crc32c. Arguments as wide_blocks. */
static uint32_t copy_and_sum(char *to, const char *at, size_t n, int past_caches, const char *later, size_t n_later) {
    uint64_t crc = 0xffffffffu;
    size_t whole = 0;
#if defined(__x86_64__)
    if (wide && n >= WIDE_MIN) {
        whole = n & ~(size_t)255;
        crc = wide_blocks(crc, at, whole, to, past_caches && ((uintptr_t)to & 63) == 0, later, n_later);
    }
#else
    (void)past_caches, (void)later, (void)n_later;
#endif
    memcpy(to + whole, at + whole, n - whole);
    return (uint32_t)carry_on(crc, (const unsigned char *)to + whole, n - whole) ^ 0xffffffffu;
}

/* Raised whenever the arguments of a function of the library change, with those of its callers: a library left over from an
 * older build is then passed over, instead of being called wrongly. */
int streamkit_abi(void) {
    return 8;
}

/* 1 where this processor has the crc32c instruction. */
int streamkit_supported(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("sse4.2");
#else
    return 0;
#endif
}

enum { WRONG_CRC = 0, FILE_ENDS = -1, BUS_ERROR = -2, NO_ROOM = -3 }; /* *reason; positive ones are errnos */

static int read_whole(int fd, char *into, int64_t length, int64_t offset) {
    while (length > 0) {
        ssize_t got = pread(fd, into, (size_t)length, offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno;
        if (got == 0)
            return FILE_ENDS;
        into += got, length -= got, offset += got;
    }
    return 0;
}

/* The first range that would leave the memory it is read into, whatever the index says; n when none does. */
static int64_t first_without_room(int64_t n, const int64_t *lengths, int64_t memory_nbytes, const int64_t *places) {
    int64_t i = 0;
    while (i < n && places[i] >= 0 && lengths[i] >= 0 && places[i] <= memory_nbytes - lengths[i])
        i++;
    return i;
}

/* Fill memory + places[i] with lengths[i] bytes of fds[i] from offsets[i] on, for all i < n; neighbours that touch in the
 * file are read in one call. With crcs, each range's crc32c is compared while the bytes are still in the cache.
 *
 * Returns n, or the number of the first range that failed, and why in *reason; a wrong crc32c is in *found. */
int64_t streamkit_read(const int32_t *fds, int64_t n, const int64_t *offsets, const int64_t *lengths, char *memory,
                       int64_t memory_nbytes, const int64_t *places, const uint32_t *crcs, int32_t *reason,
                       uint32_t *found) {
    struct iovec parts[MAX_IOV];
    int64_t i = first_without_room(n, lengths, memory_nbytes, places);
    if (i < n) {
        *reason = NO_ROOM;
        return i;
    }
    i = 0;
    while (i < n) {
        int64_t j = i, end = offsets[i];
        for (; j < n && j - i < MAX_IOV && fds[j] == fds[i] && offsets[j] == end; j++) {
            parts[j - i].iov_base = memory + places[j];
            parts[j - i].iov_len = (size_t)lengths[j];
            end += lengths[j];
        }
        ssize_t got = j == i + 1 ? pread(fds[i], parts[0].iov_base, parts[0].iov_len, offsets[i])
                                 : preadv(fds[i], parts, (int)(j - i), offsets[i]);
        if (got != end - offsets[i]) { /* a signal, a limit of the kernel, an error or the end: range by range */
            for (int64_t k = i; k < j; k++) {
                int failed = read_whole(fds[k], memory + places[k], lengths[k], offsets[k]);
                if (failed) {
                    *reason = failed;
                    return k;
                }
            }
        }
        if (crcs)
            for (int64_t k = i; k < j; k++) {
                *found = crc32c(memory + places[k], (size_t)lengths[k]);
                if (*found != crcs[k]) {
                    *reason = WRONG_CRC;
                    return k;
                }
            }
        i = j;
    }
    return n;
}

/* A mapped file that is cut, or whose disk fails, gives SIGBUS where it is read. While a thread copies, the signal ends
 * that copy with an error; at any other moment it goes to whoever had it before. */
static __thread sigjmp_buf *copying;
static struct sigaction before;
static volatile sig_atomic_t passed_on;

static void on_bus_error(int signal_number, siginfo_t *info, void *context) {
    (void)info, (void)context;
    if (copying)
        siglongjmp(*copying, 1);
    /* Returning repeats the access, which then ends as it would have. Who had the signal before may put us back (Python's
     * faulthandler does, where it came in between): then there is nobody left to ask. */
    if (passed_on++)
        signal(signal_number, SIG_DFL);
    else
        sigaction(signal_number, &before, NULL);
}

/* Take SIGBUS, unless it is ours already: before every copy, since anyone may have taken it in the meantime. */
void streamkit_guard(void) {
    struct sigaction now;
    sigaction(SIGBUS, NULL, &now);
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_bus_error)
        return;
    struct sigaction ours;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = on_bus_error;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    before = now;
    passed_on = 0;
    sigaction(SIGBUS, &ours, NULL);
}

/* Map a whole file of n bytes for reading; NULL with errno. Python's own mmap would keep a descriptor open for each. */
void *streamkit_map(int fd, int64_t n) {
    void *at = mmap(NULL, (size_t)n, PROT_READ, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

void streamkit_unmap(void *at, int64_t n) {
    munmap(at, (size_t)n);
}

/* Sum what bytes [start, stop) of a file, which lie at `piece`, hold of ascending ranges. *done is the first range whose sum
 * is not known yet; of one that goes on behind `stop`, *carry is the sum so far. */
static void sum_ranges(const char *piece, int64_t start, int64_t stop, int64_t n, const int64_t *offsets,
                       const int64_t *lengths, uint32_t *sums, int64_t *done, uint32_t *carry) {
    int64_t i = *done;
    for (; i < n && (offsets[i] < stop || offsets[i] + lengths[i] <= stop); i++) {
        int64_t from = offsets[i] < start ? start : offsets[i];
        int64_t end = offsets[i] + lengths[i] < stop ? offsets[i] + lengths[i] : stop;
        uint64_t sum = offsets[i] < start ? *carry : 0xffffffffu;
        if (end > from)
            sum = carry_on(sum, (const unsigned char *)piece + (from - start), (size_t)(end - from));
        if (offsets[i] + lengths[i] > stop) {
            *carry = (uint32_t)sum;
            break;
        }
        sums[i] = (uint32_t)sum ^ 0xffffffffu;
    }
    *done = i;
}

/* Go on with a pass over a file: read up to `nbytes` from byte `at` on into `block`, and sum the ranges in them while they
 * are near. Returns the bytes read, 0 at the file's end, or minus an errno where not one byte could be read. */
int64_t streamkit_pass(int fd, int64_t at, int64_t nbytes, char *block, int64_t n, const int64_t *offsets,
                       const int64_t *lengths, uint32_t *sums, int64_t *done, uint32_t *carry) {
    int64_t read = 0;
    while (read < nbytes) {
        int64_t wanted = nbytes - read < PIECE_NBYTES ? nbytes - read : PIECE_NBYTES;
        ssize_t got = pread(fd, block + read, (size_t)wanted, at + read);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && read == 0)
            return -errno;
        if (got <= 0)
            break;
        sum_ranges(block + read, at + read, at + read + got, n, offsets, lengths, sums, done, carry);
        read += got;
    }
    return read;
}

/* Bytes of range i that are to be fetched ahead: none where it begins just behind the one before it, since the processor
 * goes on there by itself. */
static int64_t ahead_of(int64_t i, int64_t n, char *const *sources, const int64_t *lengths) {
    if (i >= n)
        return 0;
    int64_t gap = (intptr_t)sources[i] - (intptr_t)(sources[i - 1] + lengths[i - 1]); /* they may be of two files */
    if (gap >= 0 && gap < PAGE_NBYTES)
        return 0;
    return lengths[i] < AHEAD_NBYTES ? lengths[i] : AHEAD_NBYTES;
}

/* Fetch the first line of range i's pages. */
static void fetch_pages(int64_t i, int64_t n, char *const *sources, const int64_t *lengths) {
    int64_t nbytes = ahead_of(i, n, sources, lengths);
    for (int64_t k = 0; k < nbytes && k < PAGES_NBYTES; k += PAGE_NBYTES)
        __builtin_prefetch(sources[i] + k);
}

/* As streamkit_read, but from memory: range i begins at sources[i], in a mapped file. */
int64_t streamkit_copy(int64_t n, char *const *sources, const int64_t *lengths, char *memory, int64_t memory_nbytes,
                       const int64_t *places, const uint32_t *crcs, int32_t *reason, uint32_t *found) {
    int64_t bad = first_without_room(n, lengths, memory_nbytes, places);
    if (bad < n) {
        *reason = NO_ROOM;
        return bad;
    }
    streamkit_guard();
    sigjmp_buf back;
    volatile int64_t i = 0;
    if (sigsetjmp(back, 0)) {
        copying = NULL;
        *reason = BUS_ERROR;
        return i;
    }
    copying = &back;
    for (int64_t k = 1; k < PAGES_ROWS_AHEAD; k++)
        fetch_pages(k, n, sources, lengths);
    for (; i < n; i++) {
        char *to = memory + places[i];
        size_t length = (size_t)lengths[i];
        if (!crcs) {
            memcpy(to, sources[i], length);
            continue;
        }
        fetch_pages(i + PAGES_ROWS_AHEAD, n, sources, lengths);
        int64_t soon = i + ROWS_AHEAD;
        int64_t n_later = ahead_of(soon, n, sources, lengths);
        *found = copy_and_sum(to, sources[i], length, memory_nbytes > CACHED_NBYTES, n_later ? sources[soon] : NULL,
                              (size_t)n_later);
        if (*found != crcs[i]) {
            *reason = WRONG_CRC;
            break;
        }
    }
    copying = NULL;
    __sync_synchronize(); /* what went past the caches is in memory before another thread is told */
    return i;
}
