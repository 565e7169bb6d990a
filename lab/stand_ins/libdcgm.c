/* Stand-in of NVIDIA's libdcgm: the few calls that an exporter and a version check make, for one imaginary L4.
 *
 * Compiled with -DDCGM_VERSION="3.3.9" (or a 4.x); the file's name and SONAME carry the major. Names, numbers and
 * layouts are those of NVIDIA's dcgm_agent.h, dcgm_structs.h and dcgm_fields.h.
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ST_OK = 0, ST_BADPARAM = -1, ST_NO_DATA = -14, ST_VER_MISMATCH = -12, ST_CONNECTION_NOT_VALID = -21 };
enum { GPU_TEMP = 150, POWER_USAGE = 155, GPU_UTIL = 203, MEM_COPY_UTIL = 204, FB_FREE = 251, FB_USED = 252 };
/* What tells of faults; the imaginary GPU is idle, which is bit 1 of the reasons, and has none. */
enum { THROTTLE_REASONS = 112, XID = 230, ECC_SINGLE = 310, ECC_DOUBLE = 311, ROWS_UNCORRECTABLE = 393,
       ROWS_CORRECTABLE = 394, REMAP_FAILURE = 395 };

typedef struct {
    unsigned int version;
    char raw[512];
} version_info_t;

typedef struct {
    unsigned int version;
    unsigned short field, type; /* type: 'i' for a whole number, 'd' for a real one */
    int status;
    int64_t microseconds;
    union {
        int64_t i64;
        double dbl;
        char blob[4096];
    } value;
} field_value_t;

int dcgmInit(void) { return ST_OK; }

int dcgmShutdown(void) { return ST_OK; }

int dcgmVersionInfo(version_info_t *info) {
    if (!info) return ST_BADPARAM;
    if ((info->version & 0xffffff) != sizeof *info) return ST_VER_MISMATCH;
    snprintf(info->raw, sizeof info->raw, "arch:x86_64;buildtype:stand-in;version:%s", DCGM_VERSION);
    return ST_OK;
}

int dcgmStartEmbedded(int mode, uintptr_t *handle) {
    (void)mode;
    *handle = 1;
    return ST_OK;
}

int dcgmStopEmbedded(uintptr_t handle) { return handle ? ST_OK : ST_BADPARAM; }

/* address: HOST:PORT of a host engine, which is asked for nothing but to be there. */
int dcgmConnect(const char *address, uintptr_t *handle) {
    char host[256];
    const char *colon = strrchr(address, ':');
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    if (!colon || colon - address >= (long)sizeof host) return ST_BADPARAM;
    snprintf(host, sizeof host, "%.*s", (int)(colon - address), address);
    if (getaddrinfo(host, colon + 1, &hints, &found)) return ST_CONNECTION_NOT_VALID;
    int connected = -1;
    for (struct addrinfo *next = found; next && connected; next = next->ai_next) {
        int link = socket(next->ai_family, SOCK_STREAM, 0);
        connected = connect(link, next->ai_addr, next->ai_addrlen);
        close(link);
    }
    freeaddrinfo(found);
    *handle = 2;
    return connected ? ST_CONNECTION_NOT_VALID : ST_OK;
}

int dcgmDisconnect(uintptr_t handle) { return handle ? ST_OK : ST_BADPARAM; }

int dcgmGetAllDevices(uintptr_t handle, unsigned int gpus[32], int *count) {
    if (!handle) return ST_BADPARAM;
    gpus[0] = 0;
    *count = 1;
    return ST_OK;
}

int dcgmGetLatestValuesForFields(uintptr_t handle, int gpu, unsigned short fields[], unsigned int count,
                                 field_value_t values[]) {
    if (!handle || gpu != 0) return ST_BADPARAM;
    for (unsigned int i = 0; i < count; i++) {
        field_value_t *one = &values[i];
        memset(one, 0, sizeof *one);
        one->field = fields[i];
        one->type = fields[i] == POWER_USAGE ? 'd' : 'i';
        one->microseconds = (int64_t)time(NULL) * 1000000;
        switch (fields[i]) {
            case GPU_TEMP: one->value.i64 = 41; break;
            case POWER_USAGE: one->value.dbl = 16.5; break;
            case GPU_UTIL: one->value.i64 = 0; break;
            case MEM_COPY_UTIL: one->value.i64 = 0; break;
            case FB_FREE: one->value.i64 = 22563; break;
            case FB_USED: one->value.i64 = 0; break;
            case THROTTLE_REASONS: one->value.i64 = 1; break;
            case XID:
            case ECC_SINGLE:
            case ECC_DOUBLE:
            case ROWS_UNCORRECTABLE:
            case ROWS_CORRECTABLE:
            case REMAP_FAILURE: one->value.i64 = 0; break;
            default: one->status = ST_NO_DATA;
        }
    }
    return ST_OK;
}
