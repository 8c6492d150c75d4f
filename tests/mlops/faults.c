/* Loaded with LD_PRELOAD into a node. While the file $GAME/slow exists, each fsync takes a second longer; while $GAME/clock exists,
 * the time of day is two hours ahead. The monotonic clock stays as it is, as it does when somebody sets a clock. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int is_on(const char *name)
{
    char path[4096];
    const char *folder = getenv("GAME");

    if (folder == NULL || snprintf(path, sizeof(path), "%s/%s", folder, name) >= (int)sizeof(path))
        return 0;
    return access(path, F_OK) == 0;
}

static int slowly(const char *name, int file)
{
    int (*original)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);

    if (is_on("slow"))
        usleep(1000000);
    return original(file);
}

int fsync(int file)
{
    return slowly("fsync", file);
}

int fdatasync(int file)
{
    return slowly("fdatasync", file);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int (*original)(clockid_t, struct timespec *) = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = original(clock, now);

    if (!failed && clock == CLOCK_REALTIME && is_on("clock"))
        now->tv_sec += 7200;
    return failed;
}
