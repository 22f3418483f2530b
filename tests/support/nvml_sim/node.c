/* Reads the directory that stands for a node: node.h tells its files and what counts as held. */
#define _POSIX_C_SOURCE 200809L

#include "node.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- the directory ---- */

typedef struct {
    char symbol[64], uuid[96], mode[16];
    unsigned rc;
    long long delay_ms;
} Fault;

int open_node(void)
{
    const char *path = getenv("NVML_SIMULATOR_STATE");
    return path == NULL ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

FILE *open_text(int directory, const char *name)
{
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    FILE *file = fdopen(fd, "r");
    if (file == NULL)
        close(fd);
    return file;
}

int read_devices(Device devices[MAX_DEVICES])
{
    char line[512];
    int count = 0, node = open_node();
    FILE *file = open_text(node, "devices");
    close(node);
    if (file == NULL)
        return -1;
    while (count >= 0 && count < MAX_DEVICES && fgets(line, sizeof line, file) != NULL) {
        Device *device = &devices[count];
        bool whole = sscanf(line, "%95[^\t]\t%95[^\t]\t%u\t%31[^\t]\t%llu\t%llu", device->uuid,
                            device->name, &device->minor, device->bus_id, &device->total,
                            &device->base) == 6;
        count = whole ? count + 1 : -1;
    }
    fclose(file);
    return count;
}

static bool find_fault(const char *mode, const char *symbol, const char *uuid, Fault *fault)
{
    char line[256];
    bool found = false;
    int node = open_node();
    FILE *file = open_text(node, "faults");
    close(node);
    if (file == NULL)
        return false;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        found = sscanf(line, "%63s %95s %15s %u %lld", fault->symbol, fault->uuid, fault->mode,
                       &fault->rc, &fault->delay_ms) == 5 &&
                strcmp(fault->mode, mode) == 0 &&
                (strcmp(fault->symbol, "*") == 0 || strcmp(fault->symbol, symbol) == 0) &&
                (strcmp(fault->uuid, "*") == 0 || strcmp(fault->uuid, uuid) == 0);
    }
    fclose(file);
    return found;
}

static long long read_lag_ms(int node)
{
    long long lag_ms = 0;
    FILE *file = open_text(node, "lag_ms");
    if (file == NULL)
        return 0;
    if (fscanf(file, "%lld", &lag_ms) != 1)
        lag_ms = 0;
    fclose(file);
    return lag_ms;
}

/* ---- time and processes ---- */

static long long milliseconds(struct timespec time)
{
    return (long long)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static long long clock_ms(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return milliseconds(time);
}

void sleep_ms(long long duration)
{
    struct timespec time = {.tv_sec = duration / 1000, .tv_nsec = duration % 1000 * 1000000};
    nanosleep(&time, NULL);
}

Return suffer(const char *symbol, const char *uuid)
{
    Fault fault;
    long long began = clock_ms(CLOCK_MONOTONIC);
    while (find_fault("return", symbol, uuid, &fault)) {
        if (clock_ms(CLOCK_MONOTONIC) - began >= fault.delay_ms)
            return (Return)fault.rc;
        sleep_ms(2);
    }
    return SUCCESS;
}

bool is_hidden(const char *symbol, const char *uuid)
{
    Fault fault;
    return find_fault("hide", symbol, uuid, &fault);
}

bool is_stale(const char *symbol, const char *uuid)
{
    Fault fault;
    return find_fault("stale", symbol, uuid, &fault);
}

static bool is_alive(unsigned pid, unsigned long long start_time)
{
    char path[32], text[1024], state;
    long threads;
    unsigned long long started;
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    FILE *file = open_text(AT_FDCWD, path);
    if (file == NULL)
        return errno != ENOENT; /* out of descriptors, say: no proof of a death */
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = '\0';
    /* The name in field 2 may hold spaces and brackets: count from the last bracket. */
    const char *fields = strrchr(text, ')');
    if (fields == NULL || sscanf(fields + 1,
                                 " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s"
                                 " %*s %ld %*s %llu",
                                 &state, &threads, &started) != 3)
        return false;
    /* Threads behind a zombie leader keep the memory of the process, on a GPU as well. */
    bool gone = (state == 'Z' || state == 'X') && threads <= 1;
    return started == start_time && !gone;
}

unsigned long long own_pid_namespace(void)
{
    struct stat own;
    return stat("/proc/self/ns/pid", &own) == 0 ? own.st_ino : 0;
}

/* ---- allocations ---- */

/* How long ago the process behind this row was first seen dead; 0 when that is now. */
static long long dead_for_ms(int dead, const char *name)
{
    struct stat marker;
    int fd = openat(dead, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) {
        close(fd);
        return 0;
    }
    if (fstatat(dead, name, &marker, 0) != 0)
        return 0;
    return clock_ms(CLOCK_REALTIME) - milliseconds(marker.st_mtim);
}

/*
 * Whether a process of another pid namespace still holds a row. The kernel drops its lock when it
 * dies, and names the owner in our own numbers, with 0 for one that this namespace cannot see.
 */
static bool is_locked(int node, int allocations, const char *name, Row *row)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int locks = openat(node, "locks", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = openat(locks, name, O_RDONLY | O_CLOEXEC);
    close(locks);
    if (fd < 0) /* never locked, so nobody can tell from here; or given back just now */
        return faccessat(allocations, name, F_OK, 0) == 0;
    bool answered = fcntl(fd, F_GETLK, &lock) == 0;
    close(fd);
    if (!answered)
        return true;
    if (lock.l_type == F_UNLCK) /* nobody's, or the asker's own: of those it is silent */
        return row->pid == (unsigned)getpid() && is_alive(row->pid, row->start_time);
    row->pid = (unsigned)lock.l_pid;
    row->is_visible = lock.l_pid > 0;
    return true;
}

static void forget(int node, const char *directory, const char *name)
{
    int fd = openat(node, directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    unlinkat(fd, name, 0);
    close(fd);
}

static bool is_held(int node, int allocations, const char *name, Row *row)
{
    bool lives = row->is_visible ? is_alive(row->pid, row->start_time)
                                 : is_locked(node, allocations, name, row);
    if (lives)
        return true;
    long long lag_ms = read_lag_ms(node);
    mkdirat(node, "dead", 0777);
    int dead = openat(node, "dead", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool lingers = lag_ms > 0 && dead_for_ms(dead, name) < lag_ms;
    if (!lingers) { /* for good: the name carries the start time and never comes back */
        unlinkat(allocations, name, 0);
        unlinkat(dead, name, 0);
        forget(node, "locks", name);
    }
    close(dead);
    return lingers;
}

static bool read_row(FILE *file, Row *row)
{
    int fields = fscanf(file, "%95s %15s %u %llu %llu %u %u %llu", row->uuid, row->kind, &row->pid,
                        &row->start_time, &row->bytes, &row->gpu_instance,
                        &row->compute_instance, &row->pid_namespace);
    row->is_visible = row->pid_namespace == own_pid_namespace();
    return fields == 8;
}

/* Read one file into row; *held tells whether it is memory of this GPU that is still held. */
static Return read_allocation(int node, int allocations, const char *name, const char *uuid,
                              Row *row, bool *held)
{
    *held = false;
    FILE *file = open_text(allocations, name);
    if (file == NULL) /* taken back since the directory was listed, or no answer at all */
        return errno == ENOENT ? SUCCESS : UNKNOWN;
    bool whole = read_row(file, row);
    fclose(file);
    *held = whole && strcmp(row->uuid, uuid) == 0 && is_held(node, allocations, name, row);
    return whole ? SUCCESS : UNKNOWN;
}

Return read_named_row(const char *name, const char *uuid, Row *row, bool *held)
{
    int node = open_node();
    int allocations = openat(node, "allocations", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    Return result = read_allocation(node, allocations, name, uuid, row, held);
    close(allocations);
    close(node);
    return result;
}

static void make_room(Row **rows, size_t count)
{
    if (count % 64 != 0)
        return;
    Row *grown = realloc(*rows, (count + 64) * sizeof **rows);
    if (grown == NULL)
        abort();
    *rows = grown;
}

Return held_rows(const Device *device, Row **rows, size_t *count)
{
    int node = open_node();
    int allocations = openat(node, "allocations", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = allocations < 0 ? NULL : fdopendir(allocations);
    Return result = listing == NULL ? UNKNOWN : SUCCESS;
    bool held;
    *rows = NULL;
    *count = 0;
    for (struct dirent *entry; result == SUCCESS && (entry = readdir(listing)) != NULL;) {
        if (entry->d_name[0] == '.') /* a row being written */
            continue;
        make_room(rows, *count);
        result = read_allocation(node, allocations, entry->d_name, device->uuid, *rows + *count,
                                 &held);
        *count += held;
    }
    if (listing != NULL)
        closedir(listing);
    close(node);
    return result;
}
