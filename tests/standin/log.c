// Settings, the lock, each thread's last error, and the log.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cudart.h"

struct settings settings;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local cudaError_t last_error;

static struct {
    int file; // below zero: nothing is logged
    size_t used;
    char text[1 << 16];
} events = {.file = -1};

// A number from the environment. Anything else there is a mistake in a test, which should not go unnoticed.
static uint64_t number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    if (text == NULL || *text == '\0') {
        return otherwise;
    }
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno != 0 || *end != '\0' || *text == '-') {
        fprintf(stderr, "stand-in CUDA device: %s is not a number: %s\n", name, text);
        abort();
    }
    return value;
}

// When the library is loaded, which is before any kernel is registered.
__attribute__((constructor)) static void read_settings(void)
{
    settings.memory = number("STANDIN_MEMORY", UINT64_C(140) << 30);
    settings.chip = (int)number("STANDIN_CHIP", 90);
    settings.devices = (int)number("STANDIN_DEVICES", 1);
    const char *path = getenv("STANDIN_LOG");
    if (path != NULL && *path != '\0') {
        events.file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        if (events.file < 0) {
            fprintf(stderr, "stand-in CUDA device: cannot write the log %s: %s\n", path, strerror(errno));
        }
    }
}

__attribute__((destructor)) static void close_log(void)
{
    enter();
    if (events.file >= 0) {
        flush_log();
        close(events.file);
        events.file = -1;
    }
    leave(cudaSuccess);
}

void enter(void)
{
    pthread_mutex_lock(&lock);
}

cudaError_t leave(cudaError_t error)
{
    pthread_mutex_unlock(&lock);
    return remember(error);
}

cudaError_t remember(cudaError_t error)
{
    if (error != cudaSuccess) {
        last_error = error;
    }
    return error;
}

// Whole lines only, so that processes can share a log and a killed one leaves no half line.
void flush_log(void)
{
    size_t done = 0;
    while (events.file >= 0 && done < events.used) {
        ssize_t written = write(events.file, events.text + done, events.used - done);
        if (written < 0 && errno != EINTR) {
            fprintf(stderr, "stand-in CUDA device: cannot write the log: %s\n", strerror(errno));
            break;
        }
        done += written > 0 ? (size_t)written : 0;
    }
    events.used = 0;
}

// One line into what is left of the buffer; false where it does not fit.
static bool append(const char *format, va_list values)
{
    size_t room = sizeof events.text - events.used;
    int length = vsnprintf(events.text + events.used, room, format, values);
    if (length < 0 || (size_t)length >= room) {
        return false;
    }
    events.used += (size_t)length;
    events.text[events.used++] = '\n'; // in place of the final zero
    return true;
}

void note(const char *format, ...)
{
    if (events.file < 0) {
        return;
    }
    va_list values;
    va_start(values, format);
    bool fits = append(format, values);
    va_end(values);
    if (!fits) {
        flush_log();
        va_start(values, format);
        if (!append(format, values)) {
            fprintf(stderr, "stand-in CUDA device: a line of the log is longer than %zu bytes\n", sizeof events.text);
        }
        va_end(values);
    }
}

void *grown(void *array, size_t count, size_t *room, size_t element)
{
    if (count < *room) {
        return array;
    }
    *room = *room == 0 ? 64 : 2 * *room;
    array = realloc(array, *room * element);
    if (array == NULL) {
        fputs("stand-in CUDA device: out of memory\n", stderr);
        abort();
    }
    return array;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}
