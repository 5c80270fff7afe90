/* What folders hold, and many small files read whole: a call for hundreds of folders or files, outside Python's lock.
 *
 * sources/files.py loads this with ranges.c, and asks the system folder by folder and file by file where it was not built.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LONGEST 16 /* suffix looked for, with its dot */

/* Whether a name ends as one of the files that are looked for: suffixes in small letters, each between two newlines. */
static int is_wanted(const char *name, const char *suffixes) {
    const char *dot = strrchr(name, '.');
    if (!dot || strlen(dot) > LONGEST)
        return 0;
    char suffix[LONGEST + 3] = "\n";
    size_t n = 1;
    for (; *dot; dot++)
        suffix[n++] = (char)(*dot >= 'A' && *dot <= 'Z' ? *dot + 'a' - 'A' : *dot);
    suffix[n] = '\n';
    return strstr(suffixes, suffix) != NULL;
}

/* Type (d_type's numbers) and size of an entry; the size of a file alone that is wanted, or an errno below 0. */
static void look(int folder, const char *name, const char *suffixes, uint8_t *type, int64_t *size) {
    struct stat facts;
    int failed = 0;
    if (*type != DT_UNKNOWN && (*type != DT_REG || !is_wanted(name, suffixes)))
        return;
    while ((failed = fstatat(folder, name, &facts, AT_SYMLINK_NOFOLLOW)) && errno == EINTR)
        ;
    if (failed) {
        *type = DT_REG;
        *size = -errno;
        return;
    }
    *type = (uint8_t)IFTODT(facts.st_mode);
    *size = *type == DT_REG ? (int64_t)facts.st_size : 0;
}

/* What the folders of these paths hold, each path ended by a 0; hidden entries are left out. Of each entry the name, ended
 * by a 0, and what `look` finds; of each folder the number of entries, or an errno below 0. How many folders it was: one
 * for which there is no room is not told at all, and is looked at only when all of its names are known. */
int64_t streamkit_list(int64_t n_folders, const char *paths, const char *suffixes, int64_t n_max, int64_t room,
                       char *names, uint8_t *types, int64_t *sizes, int64_t *counts, int64_t *used) {
    int64_t n = 0, i = 0;
    *used = 0;
    for (; i < n_folders; i++, paths += strlen(paths) + 1) {
        DIR *folder = opendir(paths);
        if (!folder) {
            counts[i] = -errno;
            continue;
        }
        int64_t first = n, at = *used, full = 0;
        struct dirent *entry;
        while (errno = 0, (entry = readdir(folder))) {
            int64_t length = (int64_t)strlen(entry->d_name) + 1;
            if (entry->d_name[0] == '.')
                continue;
            if ((full = n == n_max || length > room - at))
                break;
            memcpy(names + at, entry->d_name, (size_t)length);
            at += length;
            types[n] = entry->d_type;
            sizes[n++] = 0;
        }
        counts[i] = !full && errno ? -errno : n - first;
        if (full || counts[i] < 0)
            n = first;
        for (int64_t k = first, name = *used; k < n; k++, name += (int64_t)strlen(names + name) + 1)
            look(dirfd(folder), names + name, suffixes, &types[k], &sizes[k]);
        closedir(folder);
        if (full)
            break;
        *used = n == first ? *used : at;
    }
    return i;
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
    while (!failed && got && done <= before.st_size) {
        got = read(fd, memory + done, (size_t)(before.st_size + 1 - done)); /* one more: a file that grew shows itself */
        if (got < 0)
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

/* Files of these paths, each ended by a 0, one behind the other into memory: until they are n, or there may be no room for
 * the next. How many these were, and each one's length, or an errno below 0: EFBIG of one that is larger than that. */
int64_t streamkit_read_files(int64_t n, const char *paths, int64_t largest, int64_t room, char *memory,
                             int64_t *lengths) {
    int64_t at = 0, i = 0;
    for (; i < n && room - at > largest; i++, paths += strlen(paths) + 1) {
        lengths[i] = read_file(paths, memory + at, largest);
        at += lengths[i] > 0 ? lengths[i] : 0;
    }
    return i;
}
