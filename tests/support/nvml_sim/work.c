/* How busy the processes of a node are: the driver's sample buffer, as node.h tells its files. */
#define _POSIX_C_SOURCE 200809L

#include "node.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static unsigned long long now_us(void)
{
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return (unsigned long long)time.tv_sec * 1000000 + (unsigned long long)time.tv_nsec / 1000;
}

/*
 * Fold the lines of one process, each of which holds from its time to that of the next: the most
 * work after since_us becomes the sample. The last line of the living holds until now, that of
 * the dead at its own time only, for nobody says when they died.
 */
static void fold(FILE *file, bool lives, unsigned long long since_us, Sample *sample)
{
    unsigned long long from, next, now = now_us();
    unsigned percent, next_percent;
    char engine[16], next_engine[16];
    bool is_last = fscanf(file, "%llu %u %15s", &from, &percent, engine) != 3;
    while (!is_last) {
        is_last = fscanf(file, "%llu %u %15s", &next, &next_percent, next_engine) != 3;
        unsigned long long until = !is_last ? next : lives ? now : from;
        if (until > since_us && percent > 0) {
            sample->percent = percent > sample->percent ? percent : sample->percent;
            sample->time_us = until;
            sample->is_decoding = strcmp(engine, "decoder") == 0;
        }
        if (is_last)
            sample->current = lives && strcmp(engine, "sm") == 0 ? percent : 0;
        from = next;
        percent = next_percent;
        memcpy(engine, next_engine, sizeof engine);
    }
}

static bool read_sample(int work, const Device *device, const char *name,
                        unsigned long long since_us, Sample *sample)
{
    char uuid[96];
    unsigned long long pid_namespace;
    bool held = false, mine = false;
    Row row;
    FILE *file = open_text(work, name);
    if (file == NULL)
        return false;
    *sample = (Sample){0};
    if (fscanf(file, "%95s %u %llu", uuid, &sample->pid, &pid_namespace) == 3 &&
        strcmp(uuid, device->uuid) == 0) {
        mine = read_named_row(name, device->uuid, &row, &held) == SUCCESS;
        sample->is_visible = held ? row.is_visible : pid_namespace == own_pid_namespace();
        sample->pid = held ? row.pid : sample->pid;
        fold(file, held, since_us, sample);
    }
    fclose(file);
    return mine;
}

unsigned read_samples(const Device *device, unsigned long long since_us, Sample *samples)
{
    unsigned long long oldest = now_us() - BUFFER_US;
    unsigned count = 0;
    int node = open_node();
    int work = openat(node, "work", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = work < 0 ? NULL : fdopendir(work);
    close(node);
    if (listing == NULL)
        return 0;
    for (struct dirent *entry; count < MAX_SAMPLES && (entry = readdir(listing)) != NULL;)
        if (entry->d_name[0] != '.' &&
            read_sample(work, device, entry->d_name, since_us > oldest ? since_us : oldest,
                        &samples[count]))
            count++;
    closedir(listing);
    return count;
}
