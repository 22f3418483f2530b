/*
 * A node whose GPUs are files: what the simulated libnvidia-ml.so.1 reads.
 *
 * NVML_SIMULATOR_STATE names a directory, which is read anew at every call:
 *
 *   devices        a line per GPU, parted by tabs: uuid name minor pci-bus-id total-bytes base-bytes
 *   allocations/   a file per allocation, named pid-starttime-token, one line:
 *                  uuid compute|graphics|mps pid start-time bytes gi ci pid-namespace-inode
 *   locks/         a file beside each allocation, with a POSIX lock of the process that holds it
 *   work/          a file beside each allocation that computes: "uuid pid pid-namespace-inode", then
 *                  a line for each change: time in us, percent in use from then on, and whether
 *                  sm or decoder does it   (optional)
 *   faults         a line per rule: symbol|* uuid|* return|hide|stale rc delay-ms   (optional)
 *   lag_ms         how long memory outlives the first look at its dead process (optional)
 *   dead/          written here: when a process was first seen dead, as the time of a file
 *
 * Writers replace whole files by rename, so a reader needs no lock. A row counts only while
 * the process with that pid and that start time (field 22 of /proc/PID/stat) is alive: a
 * reused pid is another process, and a zombie without other threads has closed its files.
 *
 * As with the real driver, a process of a child pid namespace is listed with the pid that the
 * caller's namespace has for it. Of one in any other namespace the memory is in use, but the
 * process is left out of the lists, with success. Both come from the kernel, which tells everybody
 * the owner of a lock in the asker's numbers: no right to look into the process is needed. Only
 * rows of another namespace need their lock, and only theirs is opened: a process that closes
 * any descriptor of a file loses its POSIX locks on it.
 */
#ifndef NODE_H
#define NODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum {
    MAX_DEVICES = 64,
    MAX_SAMPLES = 72,      /* of processes, which the driver keeps of each GPU */
    BUFFER_US = 12000000, /* and for how long, at six in a second */
};

typedef enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999,
} Return;

typedef struct {
    char uuid[96], name[96], bus_id[32];
    unsigned minor;
    unsigned long long total, base;
} Device;

typedef struct {
    char uuid[96], kind[16];
    unsigned pid, gpu_instance, compute_instance;
    unsigned long long start_time, bytes, pid_namespace;
    bool is_visible; /* its pid means something to the caller */
} Row;

typedef struct {
    unsigned pid, percent, current; /* the most since the asked time, and that of this moment */
    unsigned long long time_us;
    bool is_visible, is_decoding;
} Sample;

/* How many GPUs the node has; -1 where the file is missing or cannot be understood. */
int read_devices(Device devices[MAX_DEVICES]);

/* The rows of a GPU that still hold memory; the caller frees them. A garbled row fails the call. */
Return held_rows(const Device *device, Row **rows, size_t *count);

/* One row by its name; *held is false too where it is no more. */
Return read_named_row(const char *name, const char *uuid, Row *row, bool *held);

/* What the processes of a GPU did after since_us, idle ones included; returns how many. */
unsigned read_samples(const Device *device, unsigned long long since_us, Sample *samples);

/* The directory of the node, a text in a directory, the caller's own pid namespace. */
int open_node(void);
FILE *open_text(int directory, const char *name);
unsigned long long own_pid_namespace(void);

/* Wait and fail as a rule says. A rule taken away in mid-call ends the wait: a hang that heals. */
Return suffer(const char *symbol, const char *uuid);

/* True where a rule empties this list. */
bool is_hidden(const char *symbol, const char *uuid);

/* True where a rule lets this call answer with more than was asked for: with old samples too. */
bool is_stale(const char *symbol, const char *uuid);

void sleep_ms(long long duration);

#endif
