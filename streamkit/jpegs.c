/* Decode many JPEGs at a call, outside Python's lock, of each only the part that is wanted, resized on the way.
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
#define LINES_AT_ONCE 16
#define N_LENGTHS 17 /* numbers of codes of each length, with which a Huffman table begins */
#define MARGIN 8 /* pixels decoded left and right of a part: colours at its edges are smoothed with those beyond */

/* resize.c */
void streamkit_axis(int64_t n_in, int64_t n_out, int mirrored, int32_t *at, uint32_t *weights);
void streamkit_blend(int64_t n, const uint8_t *above, const uint8_t *below, uint32_t weights, int16_t *out);
void streamkit_pick(int64_t n, int64_t channels, const int16_t *line, const int32_t *at, const uint32_t *weights,
                    uint8_t *out);

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
    int progress_numbers[4];
    void *accuracies;
    uint16_t *quantization[4];
    uint8_t *huffman[8];
    int precision;
    struct component *components;
    char rest[MAX_STRUCT_NBYTES];
};
_Static_assert(sizeof(void *) != 8 || offsetof(struct decoder, line) == 168, "laid out as libjpeg does");
_Static_assert(sizeof(void *) != 8 || offsetof(struct decoder, components) == 304, "laid out as libjpeg does");

struct component { /* jpeg_component_info, alike in both versions as far as it is used here */
    int number, place, across, down; /* samples a unit */
    int others[16];
    const uint16_t *quantization; /* NULL where no scan had it yet */
    void *more;
};
_Static_assert(sizeof(void *) != 8 || sizeof(struct component) == 96, "laid out as libjpeg does");

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
    int (*many_scans)(struct decoder *);
    void (*abort)(struct decoder *);
    intptr_t version, struct_nbytes; /* of the library, and of its jpeg_decompress_struct */
};

struct work {
    struct decoder decoder;
    struct messages messages;
    jmp_buf escape;
    int alive; /* there is a decoder */
    char *room; /* for lines on their way, kept from one picture to the next */
    size_t room_nbytes;
};

struct wish { /* in the order of codecs/turbo.py */
    int64_t fitting, resizing; /* slots have one size, to which parts are resized, or else those of another are left alone */
    int64_t height, width, channels;
    int64_t accurate, upper_alone;
    int64_t max_nbytes; /* of a picture decoded whole */
};

struct part { /* in pixels at the scale decoded at; and where the lines that are decoded begin, and how long they are */
    int64_t top, bottom, left, right;
    uint32_t begin, n;
};

static void escape(struct decoder *decoder) { longjmp(((struct work *)decoder->owner)->escape, 1); }

static void strict(struct decoder *decoder, int level) {
    if (level < 0) /* a warning: the data are damaged, and what follows would be guessed */
        escape(decoder);
}

static void silent(struct decoder *decoder) { (void)decoder; }

/* A new decoder. May escape. */
static void create(struct work *work, const struct turbo *turbo) {
    memset(&work->decoder, 0, sizeof work->decoder);
    work->decoder.messages = turbo->standard(&work->messages);
    work->decoder.owner = work;
    work->messages.fail = escape;
    work->messages.tell = strict;
    work->messages.print = silent;
    turbo->create(&work->decoder, (int)turbo->version, (size_t)turbo->struct_nbytes);
}

/* A decoder, where its last picture left one. Of that one's tables nothing may do for a picture that has none of its own:
 * a Huffman table without codes reads nothing, and a quantization table that begins with 0 is known by that. New tables, or a
 * new decoder, for each picture would take as long as a small one. */
static void ready(struct work *work, const struct turbo *turbo) {
    if (!work->alive)
        create(work, turbo);
    work->alive = 1;
    for (int i = 0; i < 4; i++)
        if (work->decoder.quantization[i])
            *work->decoder.quantization[i] = 0;
    for (int i = 0; i < 8; i++)
        if (work->decoder.huffman[i])
            memset(work->decoder.huffman[i], 0, N_LENGTHS);
}

/* Whether the library is of the version said, with structures of the size said. */
int64_t streamkit_jpegs_fit(const struct turbo *turbo) {
    struct work work;
    if (turbo->struct_nbytes > MAX_STRUCT_NBYTES)
        return 0;
    if (setjmp(work.escape))
        return 0;
    create(&work, turbo);
    turbo->destroy(&work.decoder);
    return 1;
}

static char *room(struct work *work, int64_t nbytes) {
    if (work->room_nbytes < (size_t)nbytes) {
        free(work->room);
        work->room = malloc((size_t)nbytes);
        work->room_nbytes = work->room ? (size_t)nbytes : 0;
    }
    if (!work->room)
        escape(&work->decoder);
    return work->room;
}

static int64_t scaled(uint32_t side, unsigned scale) { return ((int64_t)side * scale + 7) / 8; }

/* The usual scale that reaches what is wanted, as far as the picture does, with the fewest pixels; (0, 0) wants its own
 * size. Of tiny pictures several scales give that shape: the largest of all is taken then, as TurboJPEG does. */
static unsigned eighths(const struct decoder *decoder, const int32_t *least) {
    static const unsigned scales[] = {4, 3, 2, 1};
    int64_t height = (uint32_t)least[0] < decoder->height ? least[0] : (int64_t)decoder->height;
    int64_t width = (uint32_t)least[1] < decoder->width ? least[1] : (int64_t)decoder->width;
    unsigned best = 8, alike = 8;
    for (int i = 0; i < 4 && (least[0] || least[1]); i++)
        if (scaled(decoder->height, scales[i]) >= height && scaled(decoder->width, scales[i]) >= width)
            best = scales[i];
    while (scaled(decoder->height, alike) != scaled(decoder->height, best) ||
           scaled(decoder->width, alike) != scaled(decoder->width, best))
        alike--;
    return alike;
}

/* Whether colours are stored at one of the usual resolutions. Others decode, but for some the library never ends. */
static int is_usual(const struct decoder *decoder) {
    const struct component *all = decoder->components;
    int across = all[0].across, down = all[0].down;
    if (decoder->stored_space == GRAY && decoder->n_components == 1)
        return (across == 1 && down == 1) || (across == 2 && down == 2);
    if ((decoder->stored_space != YCBCR && decoder->stored_space != RGB) || decoder->n_components != 3)
        return 0;
    for (int i = 1; i < 3; i++)
        if (all[i].across != 1 || all[i].down != 1)
            return 0;
    return (across == 1 || across == 2 || across == 4) && (down == 1 || down == 2 || down == 4) && across * down <= 4;
}

/* Where a share of a side begins and ends, in pixels: what codecs/resize.py cuts out. */
static void cut(double begin, double share, int64_t side, int64_t *from, int64_t *to) {
    double first = rint(begin * (double)side), last = rint((begin + share) * (double)side);
    *from = first >= 0 ? first < (double)(side - 1) ? (int64_t)first : side - 1 : 0;
    *to = last > (double)*from ? last < (double)side ? (int64_t)last : side : *from + 1;
}

/* Read the header, choose the scale, and go to the first line of the part. */
static struct part begin(struct work *work, const struct turbo *turbo, const struct wish *wish, const uint8_t *data,
                         int64_t nbytes, const int32_t *least, const double *box) {
    struct decoder *decoder = &work->decoder;
    turbo->source(decoder, data, (unsigned long)nbytes);
    turbo->header(decoder, 1);
    if (!is_usual(decoder))
        escape(decoder);
    decoder->space = wish->channels == 1 ? GRAY : wish->channels == 3 ? TO_RGB : TO_RGBA;
    decoder->dct = !wish->accurate;
    decoder->scale = eighths(decoder, least);
    decoder->scale_of = 8;
    int64_t height = scaled(decoder->height, decoder->scale), width = scaled(decoder->width, decoder->scale);
    if (height * width * wish->channels > wish->max_nbytes) /* before memory is taken for all of it */
        escape(decoder);
    turbo->start(decoder);
    if (height != decoder->out_height || width != decoder->out_width)
        escape(decoder);
    for (int i = 0; i < decoder->n_components; i++)
        if (decoder->components[i].quantization && !*decoder->components[i].quantization)
            escape(decoder);
    struct part part = {0, height, 0, width, 0, (uint32_t)width};
    if (box) {
        cut(box[0], box[2], height, &part.top, &part.bottom);
        cut(box[1], box[3], width, &part.left, &part.right);
    }
    /* What several scans have not told yet is guessed from neighbours, which a crop would take away. */
    if ((part.left > MARGIN || part.right + MARGIN < width) && !turbo->many_scans(decoder)) {
        part.begin = part.left > MARGIN ? (uint32_t)part.left - MARGIN : 0;
        part.n = (uint32_t)(part.right + MARGIN < width ? part.right + MARGIN : width) - part.begin;
        turbo->crop(decoder, &part.begin, &part.n);
    }
    if (part.top)
        turbo->skip(decoder, (uint32_t)part.top);
    return part;
}

/* The part as it is, mirrored if need be. */
static void keep(struct work *work, const struct turbo *turbo, const struct part *part, int64_t channels, int mirrored,
                 uint8_t *out) {
    int64_t width = part->right - part->left, pitch = width * channels;
    int straight = width == part->n && !mirrored;
    uint8_t *lines[LINES_AT_ONCE];
    lines[0] = straight ? NULL : (uint8_t *)room(work, part->n * channels);
    for (int64_t line = part->top; line < part->bottom; line = work->decoder.line) {
        uint8_t *to = out + (line - part->top) * pitch;
        if (straight) {
            int64_t n = part->bottom - line < LINES_AT_ONCE ? part->bottom - line : LINES_AT_ONCE;
            for (int64_t i = 0; i < n; i++)
                lines[i] = to + i * pitch;
            turbo->lines(&work->decoder, lines, (uint32_t)n);
            continue;
        }
        turbo->lines(&work->decoder, lines, 1);
        const uint8_t *from = lines[0] + (part->left - part->begin) * channels;
        if (!mirrored)
            memcpy(to, from, (size_t)pitch);
        for (int64_t x = 0; mirrored && x < width; x++)
            memcpy(to + x * channels, from + (width - 1 - x) * channels, (size_t)channels);
    }
}

/* The part resized, two of its lines at a time. */
static void resize(struct work *work, const struct turbo *turbo, const struct part *part, const struct wish *wish,
                   int mirrored, uint8_t *out) {
    int64_t channels = wish->channels, pitch = part->n * channels, n_at = wish->height + wish->width;
    int64_t height = part->bottom - part->top, width = part->right - part->left;
    int32_t *at = (int32_t *)room(work, n_at * 8 + (width + 2) * channels * 2 + 32 + 2 * pitch);
    uint32_t *weights = (uint32_t *)(at + n_at);
    int16_t *blended = (int16_t *)(weights + n_at);
    uint8_t *lines[2];
    lines[0] = (uint8_t *)(blended + (width + 2) * channels + 16);
    lines[1] = lines[0] + pitch;
    streamkit_axis(width, wish->width, mirrored, at, weights);
    streamkit_axis(height, wish->height, 0, at + wish->width, weights + wish->width);
    memset(blended + width * channels, 0, (size_t)(2 * channels + 16) * 2);
    int64_t n_read = 0, offset = (part->left - part->begin) * channels;
    for (int64_t y = 0; y < wish->height; y++) {
        int64_t above = at[wish->width + y], below = height > 1 ? above + 1 : above;
        for (; n_read <= below; n_read++)
            turbo->lines(&work->decoder, &lines[n_read % 2], 1);
        streamkit_blend(width * channels, lines[above % 2] + offset, lines[below % 2] + offset,
                        weights[wish->width + y], blended);
        streamkit_pick(wish->width, channels, blended, at, weights, out + y * wish->width * channels);
    }
}

/* Look at what has not been decoded, as far as need be. */
static void end(struct work *work, const struct turbo *turbo, const struct part *part, const struct wish *wish) {
    struct decoder *decoder = &work->decoder;
    if (decoder->line < decoder->out_height) {
        if (wish->upper_alone) {
            turbo->abort(decoder);
            return;
        }
        if (decoder->line < decoder->out_height - 1)
            turbo->skip(decoder, decoder->out_height - 1 - decoder->line);
        uint8_t *line = (uint8_t *)room(work, part->n * wish->channels); /* lines skipped at the end are not read */
        turbo->lines(decoder, &line, 1);
    }
    turbo->finish(decoder);
}

/* One picture, or its part: 1 and its shape, or 0 where it is damaged, too large or of another kind. */
static int decode(struct work *work, const struct turbo *turbo, const struct wish *wish, const uint8_t *data,
                  int64_t nbytes, const int32_t *least, const double *box, int mirrored, uint8_t *out, int32_t *shape) {
    if (setjmp(work->escape)) {
        turbo->destroy(&work->decoder);
        work->alive = 0;
        return 0;
    }
    ready(work, turbo);
    struct part part = begin(work, turbo, wish, data, nbytes, least, box);
    int64_t height = part.bottom - part.top, width = part.right - part.left;
    int fits = !wish->fitting || (height == wish->height && width == wish->width);
    if (!fits && !wish->resizing)
        escape(&work->decoder);
    if (fits)
        keep(work, turbo, &part, wish->channels, mirrored, out);
    else
        resize(work, turbo, &part, wish, mirrored, out);
    end(work, turbo, &part, wish);
    shape[0] = (int32_t)(fits ? height : wish->height);
    shape[1] = (int32_t)(fits ? width : wish->width);
    return 1;
}

/* Decode n pictures, each into its slot of `out`, or one as it comes. shapes[i] is what picture i has become, (0, 0) where
 * it must be decoded otherwise; its slot may have been written to.
 *
 * Picture i lies at memory + starts[i]. It is decoded at the smallest scale that reaches least[i], of it the part boxes[i]:
 * top, left, height and width as shares; mirrored[i] swaps left and right.
 */
void streamkit_jpegs(const struct turbo *turbo, const struct wish *wish, int64_t n, const uint8_t *memory,
                     const int64_t *starts, const int64_t *lengths, const uint8_t *plain, const int32_t *least,
                     const double *boxes, const uint8_t *mirrored, uint8_t *out, int32_t *shapes) {
    struct work work;
    work.room = NULL, work.room_nbytes = 0, work.alive = 0;
    int64_t slot = wish->height * wish->width * wish->channels;
    memset(shapes, 0, (size_t)n * 2 * sizeof *shapes);
    for (int64_t i = 0; i < n; i++)
        if (plain[i])
            decode(&work, turbo, wish, memory + starts[i], lengths[i], least + 2 * i, boxes ? boxes + 4 * i : NULL,
                   mirrored && mirrored[i], out + i * slot, shapes + 2 * i);
    if (work.alive)
        turbo->destroy(&work.decoder);
    free(work.room);
}
