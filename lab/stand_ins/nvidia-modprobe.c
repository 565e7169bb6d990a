/* Stand-in of NVIDIA's set-uid nvidia-modprobe: no module to load, but the device nodes appear as the real one makes them.
 *
 *     nvidia-modprobe [-c MINOR]…      /dev/nvidia0 for minor 0 and so on, /dev/nvidiactl for 255
 *     nvidia-modprobe -u [-c MINOR]…   /dev/nvidia-uvm and /dev/nvidia-uvm-tools for minor 0; no other node
 *     nvidia-modprobe -m | -l | -s     the nodes of modeset, NVLink and NVSwitch
 *
 * Behind every node is the null device: it can be opened, as the real ones can, on a machine without a driver.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

enum { MINORS = 32, CONTROL = 255 };

static const struct option OPTIONS[] = {
    {"create-nvidia-device-file", required_argument, NULL, 'c'},
    {"unified-memory", no_argument, NULL, 'u'},
    {"modeset", no_argument, NULL, 'm'},
    {"nvlink", no_argument, NULL, 'l'},
    {"nvswitch", no_argument, NULL, 's'},
    {"version", no_argument, NULL, 'v'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static int make(const char *path) {
    struct stat seen;
    if (stat(path, &seen) == 0 && S_ISCHR(seen.st_mode) && (seen.st_mode & 0666) == 0666) return 0;
    if (mknod(path, S_IFCHR | 0666, makedev(1, 3)) != 0 || chmod(path, 0666) != 0) {
        fprintf(stderr, "nvidia-modprobe: %s: %s\n", path, strerror(errno));
        return 1;
    }
    return 0;
}

static int make_numbered(const char *stem, int minor) {
    char path[64];
    snprintf(path, sizeof path, "/dev/%s%d", stem, minor);
    return make(path);
}

static int make_for(int kind, int minor) {
    switch (kind) {
        case 'u': return minor ? 0 : make("/dev/nvidia-uvm") || make("/dev/nvidia-uvm-tools");
        case 's': return minor == CONTROL ? make("/dev/nvidia-nvswitchctl") : make_numbered("nvidia-nvswitch", minor);
        default: return minor == CONTROL ? make("/dev/nvidiactl") : make_numbered("nvidia", minor);
    }
}

int main(int count, char *words[]) {
    int minors[MINORS], given = 0, kind = 'c', option;
    while ((option = getopt_long(count, words, "c:umlsvh", OPTIONS, NULL)) != -1) {
        char *end;
        switch (option) {
            case 'c':
                if (*optarg == '=') optarg++; /* -c=0, as NVIDIA's own guides write it */
                minors[given] = (int)strtol(optarg, &end, 10);
                if (!*optarg || *end || minors[given] < 0 || minors[given] > CONTROL || ++given == MINORS) {
                    fprintf(stderr, "nvidia-modprobe: invalid minor number %s\n", optarg);
                    return 1;
                }
                break;
            case 'v': return puts("nvidia-modprobe: stand-in of the laboratory") < 0;
            case 'h': return puts("usage: nvidia-modprobe [-c MINOR]… [-u | -m | -l | -s]") < 0;
            case '?': return 1;
            default: kind = option;
        }
    }
    umask(0);
    if (kind == 'm') return make("/dev/nvidia-modeset");
    if (kind == 'l') return make("/dev/nvidia-nvlink");
    for (int i = 0; i < given; i++)
        if (make_for(kind, minors[i])) return 1;
    return 0;
}
