/* Decode many JPEGs at a call, outside Python's lock, of each only the part that is wanted.
 *
 * The decoder is the libjpeg-turbo of a package that is there anyway; codecs/turbo.py finds it, loads this with ranges.c,
 * and is held to what simplejpeg gives. Its headers are not: what is needed of its interface stands below. The library
 * refuses a structure of another version or size than its own, so one laid out otherwise is never written to.
 * Source: libjpeg.txt of libjpeg-turbo 3, "Decompression details", "Error handling", "Partial image decompression".
 */
#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STRUCT_NBYTES 1024
#define MAX_SIDE 65535
#define LINES_AT_ONCE 16
#define MARGIN 8 /* pixels decoded left and right of a part: colours at its edges are smoothed with those beyond */

enum { GRAY = 1, RGB = 2, YCBCR = 3, TO_RGB = 6, TO_RGBA = 12 }; /* J_COLOR_SPACE */

struct decoder;

struct messages { /* jpeg_error_mgr */
    void (*fail)(struct decoder *);
    void (*tell)(struct decoder *, int level);
    void (*print)(struct decoder *);
    char rest[MAX_STRUCT_NBYTES];
};

struct decoder { /* jpeg_decompress_struct, alike in versions 62 and 80 as far as it is used here */
    struct messages *messages;
    void *memory, *progress, *owner;
    int is_decompressor, state;
    void *source;
    uint32_t width, height;
    int n_components, stored_space, space;
    unsigned scale, scale_of;
    double gamma;
    int buffered, raw, dct, smooth_colours, smooth_blocks, quantize, dither, two_passes, n_colours, passes[3];
    uint32_t out_width, out_height;
    int n_colour_components, n_out_components, n_lines_at_once, n_used_colours;
    void *colour_map;
    uint32_t line;
    char rest[MAX_STRUCT_NBYTES];
};
_Static_assert(sizeof(void *) != 8 || offsetof(struct decoder, line) == 168, "laid out as libjpeg does");

struct turbo { /* in the order of codecs/turbo.py */
    struct messages *(*standard)(struct messages *);
    void (*create)(struct decoder *, int version, size_t nbytes);
    void (*destroy)(struct decoder *);
    void (*source)(struct decoder *, const uint8_t *, unsigned long nbytes);
    int (*header)(struct decoder *, int needed);
    int (*start)(struct decoder *);
    uint32_t (*lines)(struct decoder *, uint8_t **, uint32_t n);
    uint32_t (*skip)(struct decoder *, uint32_t n);
    void (*crop)(struct decoder *, uint32_t *left, uint32_t *width);
    int (*finish)(struct decoder *);
    void (*abort)(struct decoder *);
    intptr_t version, struct_nbytes; /* of the library, and of its jpeg_decompress_struct */
};

struct work {
    struct decoder decoder;
    struct messages messages;
    jmp_buf escape;
    uint8_t *line; /* room for one, where a part of it is wanted */
};

struct wish { /* in the order of codecs/turbo.py */
    int64_t channels, accurate, upper_alone;
    int64_t max_nbytes; /* of a picture decoded whole */
};

static void escape(struct decoder *decoder) { longjmp(((struct work *)decoder->owner)->escape, 1); }

static void strict(struct decoder *decoder, int level) {
    if (level < 0) /* a warning: the data are damaged, and what follows would be guessed */
        escape(decoder);
}

static void silent(struct decoder *decoder) { (void)decoder; }

/* A decoder that is ready, or 0. */
static int ready(struct work *work, const struct turbo *turbo) {
    memset(work, 0, sizeof *work);
    work->decoder.messages = turbo->standard(&work->messages);
    work->decoder.owner = work;
    work->messages.fail = escape;
    work->messages.tell = strict;
    work->messages.print = silent;
    if (turbo->struct_nbytes > MAX_STRUCT_NBYTES || setjmp(work->escape))
        return 0;
    turbo->create(&work->decoder, (int)turbo->version, (size_t)turbo->struct_nbytes);
    return 1;
}

/* Whether the library is of the version said, with structures of the size said. */
int64_t streamkit_jpegs_fit(const struct turbo *turbo) {
    struct work work;
    if (!ready(&work, turbo))
        return 0;
    turbo->destroy(&work.decoder);
    return 1;
}

/* The smallest of the usual scales that reaches what is wanted, as far as the picture does; 0 wants all of it. */
static unsigned eighths(const struct decoder *decoder, const int32_t *least) {
    static const unsigned scales[] = {1, 2, 3, 4};
    uint32_t height = least[0] && (uint32_t)least[0] < decoder->height ? (uint32_t)least[0] : decoder->height;
    uint32_t width = least[1] && (uint32_t)least[1] < decoder->width ? (uint32_t)least[1] : decoder->width;
    for (int i = 0; i < 4; i++)
        if ((decoder->height * scales[i] + 7) / 8 >= height && (decoder->width * scales[i] + 7) / 8 >= width)
            return scales[i];
    return 8;
}

/* Where a share of a side begins and ends, in pixels: what codecs/resize.py cuts out. */
static void part(double begin, double share, uint32_t side, int64_t *from, int64_t *to) {
    *from = (int64_t)rint(begin * side);
    *to = (int64_t)rint((begin + share) * side);
    *to = *to > *from ? *to : *from + 1;
    *from = *from < (int64_t)side - 1 ? *from : (int64_t)side - 1;
    *to = *to < (int64_t)side ? *to : (int64_t)side;
}

/* The next line, into room of its own. */
static void one_line(struct work *work, const struct turbo *turbo) {
    if (!work->line && !(work->line = malloc((size_t)MAX_SIDE * 4)))
        escape(&work->decoder);
    turbo->lines(&work->decoder, &work->line, 1);
}

/* One picture, or its part, into `out`: 1 and its shape, or 0 where it is damaged, too large or of another kind. */
static int decode(struct work *work, const struct turbo *turbo, const struct wish *wish, const uint8_t *data,
                  int64_t nbytes, const int32_t *least, const double *box, uint8_t *out, int32_t *shape) {
    struct decoder *decoder = &work->decoder;
    const int32_t wanted[2] = {shape[0], shape[1]};
    shape[0] = shape[1] = 0;
    if (setjmp(work->escape)) {
        turbo->abort(decoder);
        return 0;
    }
    turbo->source(decoder, data, (unsigned long)nbytes);
    turbo->header(decoder, 1);
    if (decoder->stored_space != GRAY && decoder->stored_space != RGB && decoder->stored_space != YCBCR)
        escape(decoder);
    if (!least && ((int64_t)decoder->height != wanted[0] || (int64_t)decoder->width != wanted[1]))
        escape(decoder);
    decoder->space = wish->channels == 1 ? GRAY : wish->channels == 3 ? TO_RGB : TO_RGBA;
    decoder->dct = !wish->accurate;
    decoder->scale = least && (least[0] || least[1]) ? eighths(decoder, least) : 8;
    decoder->scale_of = 8;
    turbo->start(decoder);
    int64_t height = decoder->out_height, width = decoder->out_width, channels = wish->channels;
    if (height * width * channels > wish->max_nbytes)
        escape(decoder);
    int64_t top = 0, bottom = height, left = 0, right = width;
    if (box) {
        part(box[0], box[2], decoder->out_height, &top, &bottom);
        part(box[1], box[3], decoder->out_width, &left, &right);
    }
    uint32_t begin = left > MARGIN ? (uint32_t)left - MARGIN : 0;
    uint32_t n = (right + MARGIN < width ? (uint32_t)right + MARGIN : (uint32_t)width) - begin;
    if (n < width)
        turbo->crop(decoder, &begin, &n);
    if (top)
        turbo->skip(decoder, (uint32_t)top);
    int64_t pitch = (right - left) * channels;
    while (decoder->line < bottom) {
        if (right - left < (int64_t)n) {
            int64_t line = decoder->line - top;
            one_line(work, turbo);
            memcpy(out + line * pitch, work->line + (left - begin) * channels, (size_t)pitch);
        } else {
            uint8_t *lines[LINES_AT_ONCE];
            int64_t n_left = bottom - decoder->line;
            for (int64_t i = 0; i < LINES_AT_ONCE; i++)
                lines[i] = out + (decoder->line - top + i) * pitch;
            turbo->lines(decoder, lines, (uint32_t)(n_left < LINES_AT_ONCE ? n_left : LINES_AT_ONCE));
        }
    }
    if (bottom < height && wish->upper_alone) {
        turbo->abort(decoder);
    } else {
        if (bottom < height) { /* lines that are skipped at the end are not looked at, so the last one is asked for */
            if (bottom < height - 1)
                turbo->skip(decoder, (uint32_t)(height - 1 - bottom));
            one_line(work, turbo);
        }
        turbo->finish(decoder);
    }
    shape[0] = (int32_t)(bottom - top);
    shape[1] = (int32_t)(right - left);
    return 1;
}

/* Decode pictures one behind the other into `out`, as far as `enough` bytes; how many were looked at. shapes[i] is what
 * picture i has become, (0, 0) where it must be decoded otherwise: it is the last one then.
 *
 * Picture i lies at memory + starts[i]. It is decoded at the smallest scale that reaches least[i], and of it the part
 * boxes[i]: top, left, height and width as shares. Without `least`, all must have the shape that shapes[0] says, picture i
 * goes to place i, and the others do not end it.
 */
int64_t streamkit_jpegs(const struct turbo *turbo, const struct wish *wish, int64_t n, const uint8_t *memory,
                        const int64_t *starts, const int64_t *lengths, const uint8_t *plain, const int32_t *least,
                        const double *boxes, int64_t enough, uint8_t *out, int32_t *shapes) {
    struct work work;
    if (!n || !ready(&work, turbo))
        return 0;
    const int32_t alike[2] = {shapes[0], shapes[1]};
    int64_t i = 0;
    for (int64_t at = 0; i < n && at < enough;) {
        int32_t *shape = shapes + 2 * i;
        memcpy(shape, alike, sizeof alike);
        int done = plain[i] && decode(&work, turbo, wish, memory + starts[i], lengths[i], least ? least + 2 * i : NULL,
                                      boxes ? boxes + 4 * i : NULL, out + at, shape);
        if (!done)
            shape[0] = shape[1] = 0;
        at += least ? (int64_t)shape[0] * shape[1] * wish->channels : (int64_t)alike[0] * alike[1] * wish->channels;
        i++;
        if (!done && least)
            break;
    }
    turbo->destroy(&work.decoder);
    free(work.line);
    return i;
}
