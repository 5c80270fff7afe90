/* What a folder holds, and many small files read whole: a call for thousands of files, outside Python's lock.
 *
 * sources/files.py loads this with ranges.c, and asks the system file by file where it was not built.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_ROOM 4096 /* PATH_MAX: no name takes more */

void *streamkit_open_folder(const char *path) { return opendir(path); }

void streamkit_close_folder(void *folder) { closedir(folder); }

/* The next entries of a folder, without hidden ones: their names, each ended by a 0, their modes and sizes, of links those
 * of the link. The number of entries, 0 when all have been told, an errno below 0. */
int64_t streamkit_list(void *folder, int64_t n_max, char *names, int64_t room, int32_t *modes, int64_t *sizes,
                       int64_t *used) {
    int64_t n = 0;
    *used = 0;
    while (n < n_max && room - *used >= NAME_ROOM) {
        errno = 0;
        struct dirent *entry = readdir(folder);
        if (!entry && errno)
            return -errno;
        if (!entry)
            break;
        if (entry->d_name[0] == '.')
            continue;
        struct stat facts = {.st_mode = S_IFDIR};
        if (entry->d_type != DT_DIR && fstatat(dirfd(folder), entry->d_name, &facts, AT_SYMLINK_NOFOLLOW))
            return -errno;
        size_t length = strlen(entry->d_name) + 1;
        memcpy(names + *used, entry->d_name, length);
        *used += (int64_t)length;
        modes[n] = (int32_t)facts.st_mode;
        sizes[n++] = (int64_t)facts.st_size;
    }
    return n;
}

/* A whole file of at most so many bytes into memory with room for one more: its length, an errno below 0, EFBIG if larger. */
static int64_t read_file(const char *path, char *memory, int64_t largest) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    struct stat before, after;
    int64_t done = 0, got = 1, failed = 0;
    if (fstat(fd, &before))
        failed = errno;
    else if (before.st_size > largest)
        failed = EFBIG;
    while (!failed && got && done <= before.st_size) { /* one byte more: a file that grew shows itself */
        got = read(fd, memory + done, (size_t)(before.st_size + 1 - done));
        if (got < 0 && errno != EINTR)
            failed = errno;
        done += got > 0 ? got : 0;
        if (done == before.st_size)
            break; /* another read would find no more than the look at the file below */
    }
    if (!failed && fstat(fd, &after))
        failed = errno;
    if (!failed && (done != before.st_size || after.st_size != done || after.st_mtim.tv_sec != before.st_mtim.tv_sec ||
                    after.st_mtim.tv_nsec != before.st_mtim.tv_nsec))
        failed = ESTALE;
    close(fd);
    return failed ? -failed : done;
}

/* Files of these paths, each ended by a 0, one behind the other into memory: until they are n, or one is larger than that,
 * or there may be no room for the next. How many these were, and each one's length, or an errno below 0. */
int64_t streamkit_read_files(int64_t n, const char *paths, char *memory, int64_t room, int64_t largest,
                             int64_t *lengths) {
    int64_t at = 0, i = 0;
    for (; i < n && room - at > largest; i++) {
        lengths[i] = read_file(paths, memory + at, largest);
        if (lengths[i] == -EFBIG)
            break;
        at += lengths[i] > 0 ? lengths[i] : 0;
        paths += strlen(paths) + 1;
    }
    return i;
}
