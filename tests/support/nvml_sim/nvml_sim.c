/*
 * A libnvidia-ml.so.1 for nodes without a GPU, whose memory only a real death frees.
 *
 * It exports what pynvml looks up for the agent, with the layouts of the real library: pids,
 * sizes and answers to the size probe included. node.h tells where a node comes from;
 * tests/support/nvml_simulator.py builds this library and writes such nodes.
 */
#define _POSIX_C_SOURCE 200809L

#include "node.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define EXPORT __attribute__((visibility("default")))

enum {
    MAX_PROCESSES = 950, /* what the driver returns at most in one list */
    XID_EVENTS = 0x8,
    MEMORY_V2 = 0x02000028,
};

typedef void *Handle; /* the index of a GPU plus one: survives a new devices file */

typedef struct {
    uint32_t pid;
    uint64_t bytes;
    uint32_t gpu_instance;
    uint32_t compute_instance;
} ProcessInfo;

typedef struct {
    uint64_t total, free, used;
} Memory;

typedef struct {
    uint32_t version;
    uint64_t total, reserved, free, used;
} MemoryV2;

typedef struct {
    char bus_id_legacy[16];
    uint32_t domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} PciInfo;

_Static_assert(sizeof(ProcessInfo) == 24 && offsetof(ProcessInfo, bytes) == 8, "nvmlProcessInfo_t");
_Static_assert(offsetof(ProcessInfo, compute_instance) == 20, "nvmlProcessInfo_t");
_Static_assert(sizeof(Memory) == 24 && sizeof(MemoryV2) == (MEMORY_V2 & 0xFFFF), "nvmlMemory_t");
typedef struct {
    uint32_t pid;
    uint64_t time_us;
    uint32_t sm, memory, encoder, decoder;
} ProcessSample;

typedef struct {
    uint32_t gpu, memory;
} Rates;

_Static_assert(sizeof(ProcessSample) == 32 && offsetof(ProcessSample, time_us) == 8 &&
                   offsetof(ProcessSample, sm) == 16,
               "nvmlProcessUtilizationSample_t");
_Static_assert(sizeof(Rates) == 8, "nvmlUtilization_t");
_Static_assert(sizeof(PciInfo) == 68, "nvmlPciInfo_t");

static atomic_int init_count;

static Return memory_in_use(const Device *device, uint64_t *used)
{
    Row *rows;
    size_t count;
    Return result = held_rows(device, &rows, &count);
    *used = device->base;
    for (size_t i = 0; i < count; i++)
        if (rows[i].bytes != UINT64_MAX) /* all ones: held, size not available */
            *used += rows[i].bytes;
    if (*used > device->total)
        *used = device->total;
    free(rows);
    return result;
}

/* Fold a row into the list: a process with several allocations is one entry, as in the driver. */
static Return add_process(ProcessInfo *found, unsigned *count, const Row *row)
{
    ProcessInfo entry = {row->pid, row->bytes, row->gpu_instance, row->compute_instance};
    for (unsigned i = 0; i < *count; i++) {
        if (found[i].pid != entry.pid || found[i].gpu_instance != entry.gpu_instance ||
            found[i].compute_instance != entry.compute_instance)
            continue;
        bool known = found[i].bytes != UINT64_MAX && entry.bytes != UINT64_MAX;
        found[i].bytes = known ? found[i].bytes + entry.bytes : UINT64_MAX;
        return SUCCESS;
    }
    if (*count == MAX_PROCESSES)
        return UNKNOWN;
    found[(*count)++] = entry;
    return SUCCESS;
}

/*
 * One list. The size probe (count 0, no buffer) is answered as nvml.h demands: with
 * INSUFFICIENT_SIZE and the count needed, and with SUCCESS only when there is no process.
 */
static Return list_processes(const char *symbol, const Device *device, const char *kind,
                             unsigned *count, ProcessInfo *infos)
{
    Row *rows;
    size_t row_count;
    ProcessInfo found[MAX_PROCESSES];
    unsigned needed = 0, room = infos == NULL ? 0 : *count;
    Return result = held_rows(device, &rows, &row_count);
    bool hidden = is_hidden(symbol, device->uuid);
    for (size_t i = 0; result == SUCCESS && !hidden && i < row_count; i++)
        if (rows[i].is_visible && strcmp(rows[i].kind, kind) == 0)
            result = add_process(found, &needed, &rows[i]);
    free(rows);
    if (result != SUCCESS)
        return result;
    *count = needed;
    if (needed > room)
        return INSUFFICIENT_SIZE;
    if (needed > 0)
        memcpy(infos, found, needed * sizeof *infos);
    return SUCCESS;
}

/* ---- what every exported call does first: __func__ is the symbol that faults name ---- */

static Return enter_call(const char *symbol)
{
    return atomic_load(&init_count) == 0 ? UNINITIALIZED : suffer(symbol, "");
}

static Return enter_device(const char *symbol, Handle handle, Device *device)
{
    Device devices[MAX_DEVICES];
    uintptr_t number = (uintptr_t)handle;
    if (atomic_load(&init_count) == 0)
        return UNINITIALIZED;
    int count = read_devices(devices);
    if (count < 0)
        return UNKNOWN;
    if (number == 0 || number > (uintptr_t)count)
        return INVALID_ARGUMENT;
    *device = devices[number - 1];
    return suffer(symbol, device->uuid);
}

#define RETURN_UNLESS_SUCCESS(call)                                                               \
    do {                                                                                          \
        Return outcome_ = (call);                                                                 \
        if (outcome_ != SUCCESS)                                                                  \
            return outcome_;                                                                      \
    } while (0)

#define ENTER_CALL() RETURN_UNLESS_SUCCESS(enter_call(__func__))

#define ENTER_DEVICE(handle)                                                                      \
    Device device;                                                                                \
    RETURN_UNLESS_SUCCESS(enter_device(__func__, handle, &device))

static Return put_text(char *buffer, unsigned length, const char *text)
{
    if (strlen(text) >= length)
        return INSUFFICIENT_SIZE;
    memcpy(buffer, text, strlen(text) + 1);
    return SUCCESS;
}

/* ---- exported: library and system ---- */

EXPORT Return nvmlInitWithFlags(unsigned flags)
{
    Device devices[MAX_DEVICES];
    (void)flags;
    RETURN_UNLESS_SUCCESS(suffer(__func__, ""));
    if (read_devices(devices) < 0)
        return DRIVER_NOT_LOADED;
    atomic_fetch_add(&init_count, 1);
    return SUCCESS;
}

EXPORT Return nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

EXPORT Return nvmlShutdown(void)
{
    ENTER_CALL();
    atomic_fetch_sub(&init_count, 1);
    return SUCCESS;
}

EXPORT const char *nvmlErrorString(Return code)
{
    return code == SUCCESS ? "Success" : code == UNKNOWN ? "Unknown Error" : "Simulated Error";
}

EXPORT Return nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    ENTER_CALL();
    return put_text(version, length, "595.45.04");
}

EXPORT Return nvmlSystemGetNVMLVersion(char *version, unsigned length)
{
    ENTER_CALL();
    return put_text(version, length, "13.595.45.04");
}

EXPORT Return nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    ENTER_CALL();
    *version = 13000;
    return SUCCESS;
}

/* ---- exported: finding a GPU ---- */

EXPORT Return nvmlDeviceGetCount_v2(unsigned *count)
{
    Device devices[MAX_DEVICES];
    ENTER_CALL();
    int found = read_devices(devices);
    if (found < 0)
        return UNKNOWN;
    *count = (unsigned)found;
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle *handle)
{
    ENTER_DEVICE((Handle)((uintptr_t)index + 1));
    *handle = (Handle)((uintptr_t)index + 1);
    return SUCCESS;
}

static Return find_handle(const char *symbol, const char *text, size_t field, Handle *handle)
{
    Device devices[MAX_DEVICES];
    int index = 0, count = read_devices(devices);
    if (atomic_load(&init_count) == 0)
        return UNINITIALIZED;
    if (count < 0)
        return UNKNOWN;
    while (index < count && strcasecmp((const char *)&devices[index] + field, text) != 0)
        index++;
    *handle = (Handle)((uintptr_t)index + 1);
    RETURN_UNLESS_SUCCESS(suffer(symbol, index < count ? devices[index].uuid : ""));
    return index < count ? SUCCESS : NOT_FOUND;
}

EXPORT Return nvmlDeviceGetHandleByUUID(const char *uuid, Handle *handle)
{
    return find_handle(__func__, uuid, offsetof(Device, uuid), handle);
}

EXPORT Return nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, Handle *handle)
{
    return find_handle(__func__, bus_id, offsetof(Device, bus_id), handle);
}

/* ---- exported: what a GPU is ---- */

EXPORT Return nvmlDeviceGetUUID(Handle handle, char *uuid, unsigned length)
{
    ENTER_DEVICE(handle);
    return put_text(uuid, length, device.uuid);
}

EXPORT Return nvmlDeviceGetName(Handle handle, char *name, unsigned length)
{
    ENTER_DEVICE(handle);
    return put_text(name, length, device.name);
}

EXPORT Return nvmlDeviceGetMinorNumber(Handle handle, unsigned *minor)
{
    ENTER_DEVICE(handle);
    *minor = device.minor;
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetPciInfo_v3(Handle handle, PciInfo *info)
{
    ENTER_DEVICE(handle);
    memset(info, 0, sizeof *info);
    if (sscanf(device.bus_id, "%x:%x:%x", &info->domain, &info->bus, &info->device) != 3)
        return UNKNOWN;
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "%04X:%02X:%02X.0",
             info->domain & 0xFFFF, info->bus & 0xFF, info->device & 0xFF);
    return put_text(info->bus_id, sizeof info->bus_id, device.bus_id);
}

EXPORT Return nvmlDeviceGetMigMode(Handle handle, unsigned *current, unsigned *pending)
{
    ENTER_DEVICE(handle);
    *current = *pending = 0;
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetMaxMigDeviceCount(Handle handle, unsigned *count)
{
    ENTER_DEVICE(handle);
    *count = 0;
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetMigDeviceHandleByIndex(Handle handle, unsigned index, Handle *mig)
{
    (void)index, (void)mig;
    ENTER_DEVICE(handle);
    return NOT_FOUND;
}

EXPORT Return nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Handle mig, Handle *handle)
{
    (void)handle;
    ENTER_DEVICE(mig);
    return INVALID_ARGUMENT; /* every handle here is a whole GPU */
}

/* ---- exported: what a GPU holds ---- */

EXPORT Return nvmlDeviceGetMemoryInfo(Handle handle, Memory *memory)
{
    ENTER_DEVICE(handle);
    memory->total = device.total;
    Return result = memory_in_use(&device, &memory->used);
    memory->free = memory->total - memory->used;
    return result;
}

EXPORT Return nvmlDeviceGetMemoryInfo_v2(Handle handle, MemoryV2 *memory)
{
    ENTER_DEVICE(handle);
    if (memory->version != MEMORY_V2)
        return ARGUMENT_VERSION_MISMATCH;
    memory->total = device.total;
    memory->reserved = 0;
    Return result = memory_in_use(&device, &memory->used);
    memory->free = memory->total - memory->used;
    return result;
}

EXPORT Return nvmlDeviceGetComputeRunningProcesses_v3(Handle handle, unsigned *count,
                                                      ProcessInfo *infos)
{
    ENTER_DEVICE(handle);
    return list_processes(__func__, &device, "compute", count, infos);
}

EXPORT Return nvmlDeviceGetGraphicsRunningProcesses_v3(Handle handle, unsigned *count,
                                                       ProcessInfo *infos)
{
    ENTER_DEVICE(handle);
    return list_processes(__func__, &device, "graphics", count, infos);
}

EXPORT Return nvmlDeviceGetMPSComputeRunningProcesses_v3(Handle handle, unsigned *count,
                                                         ProcessInfo *infos)
{
    ENTER_DEVICE(handle);
    return list_processes(__func__, &device, "mps", count, infos);
}

/* Nothing computes here, and the three lists above say all: better no answer than a made-up one. */
EXPORT Return nvmlDeviceGetRunningProcessDetailList(Handle handle, void *list)
{
    (void)list;
    ENTER_DEVICE(handle);
    return NOT_SUPPORTED;
}

/* ---- exported: how much a GPU works ---- */

EXPORT Return nvmlDeviceGetUtilizationRates(Handle handle, Rates *rates)
{
    Sample samples[MAX_SAMPLES];
    uint32_t sum = 0;
    ENTER_DEVICE(handle);
    unsigned count = read_samples(&device, 0, samples);
    for (unsigned i = 0; i < count; i++)
        sum += samples[i].current;
    rates->gpu = sum > 100 ? 100 : sum;
    rates->memory = rates->gpu / 2;
    return SUCCESS;
}

/* As in the driver, whoever did nothing since then is left out, and nobody at all is NOT_FOUND. */
EXPORT Return nvmlDeviceGetProcessUtilization(Handle handle, ProcessSample *found, unsigned *count,
                                              unsigned long long last_seen_us)
{
    Sample samples[MAX_SAMPLES];
    ENTER_DEVICE(handle);
    if (is_stale(__func__, device.uuid))
        last_seen_us = 0;
    unsigned read = read_samples(&device, last_seen_us, samples), needed = 0;
    unsigned room = found == NULL ? 0 : *count;
    bool hidden = is_hidden(__func__, device.uuid);
    for (unsigned i = 0; !hidden && i < read; i++) {
        if (samples[i].percent == 0 || !samples[i].is_visible)
            continue;
        uint32_t sm = samples[i].is_decoding ? 0 : samples[i].percent;
        uint32_t decoder = samples[i].percent - sm;
        if (needed < room)
            found[needed] = (ProcessSample){samples[i].pid, samples[i].time_us, sm, sm / 2, 0,
                                            decoder};
        needed++;
    }
    *count = needed;
    return needed == 0 ? NOT_FOUND : needed > room ? INSUFFICIENT_SIZE : SUCCESS;
}

/* ---- exported: events; no Xid ever comes, so a wait always runs its full time ---- */

EXPORT Return nvmlEventSetCreate(Handle *set)
{
    static char only_set;
    ENTER_CALL();
    *set = &only_set;
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetSupportedEventTypes(Handle handle, unsigned long long *types)
{
    ENTER_DEVICE(handle);
    *types = XID_EVENTS;
    return SUCCESS;
}

EXPORT Return nvmlDeviceRegisterEvents(Handle handle, unsigned long long types, Handle set)
{
    (void)set;
    ENTER_DEVICE(handle);
    return (types & ~(unsigned long long)XID_EVENTS) == 0 ? SUCCESS : NOT_SUPPORTED;
}

EXPORT Return nvmlEventSetWait_v2(Handle set, void *event, unsigned timeout_ms)
{
    (void)set, (void)event;
    ENTER_CALL();
    sleep_ms(timeout_ms);
    return TIMEOUT;
}

EXPORT Return nvmlEventSetFree(Handle set)
{
    (void)set;
    ENTER_CALL();
    return SUCCESS;
}
