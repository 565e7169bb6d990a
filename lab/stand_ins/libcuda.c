/* Stand-in of NVIDIA's libcuda on a host whose driver finds no device: it loads, links, and says so at every call.
 *
 * It has the calls that Triton's helper is linked with and those that the CUDA runtime looks up. Names and numbers are
 * those of NVIDIA's cuda.h.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, NO_DEVICE = 100, NOT_FOUND = 500 };

int cuInit(unsigned int flags) { return flags ? INVALID_VALUE : NO_DEVICE; }

int cuDriverGetVersion(int *version) {
    if (!version) return INVALID_VALUE;
    *version = 13000;
    return SUCCESS;
}

static const struct {
    int code;
    const char *name, *text;
} ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
};

static int tell(int code, const char **told, int text) {
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
        if (ERRORS[i].code == code) {
            *told = text ? ERRORS[i].text : ERRORS[i].name;
            return SUCCESS;
        }
    *told = NULL;
    return INVALID_VALUE;
}

int cuGetErrorName(int code, const char **told) { return tell(code, told, 0); }

int cuGetErrorString(int code, const char **told) { return tell(code, told, 1); }

int cuGetProcAddress(const char *symbol, void **found, int version, uint64_t flags) {
    (void)version, (void)flags;
    *found = dlsym(RTLD_DEFAULT, symbol);
    return *found ? SUCCESS : NOT_FOUND;
}

int cuGetProcAddress_v2(const char *symbol, void **found, int version, uint64_t flags, int *status) {
    int code = cuGetProcAddress(symbol, found, version, flags);
    if (status) *status = code ? 1 : 0; /* CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND */
    return code;
}

/* Nothing works before cuInit, and cuInit never does. */
#define UNUSABLE(name) \
    int name(void) { return NOT_INITIALIZED; }
UNUSABLE(cuCtxCreate_v2)
UNUSABLE(cuCtxDestroy_v2)
UNUSABLE(cuCtxGetCurrent)
UNUSABLE(cuCtxGetDevice)
UNUSABLE(cuCtxGetLimit)
UNUSABLE(cuCtxPopCurrent_v2)
UNUSABLE(cuCtxPushCurrent_v2)
UNUSABLE(cuCtxSetCurrent)
UNUSABLE(cuCtxSetLimit)
UNUSABLE(cuCtxSynchronize)
UNUSABLE(cuDeviceGet)
UNUSABLE(cuDeviceGetAttribute)
UNUSABLE(cuDeviceGetCount)
UNUSABLE(cuDeviceGetName)
UNUSABLE(cuDeviceGetUuid)
UNUSABLE(cuDevicePrimaryCtxRelease_v2)
UNUSABLE(cuDevicePrimaryCtxRetain)
UNUSABLE(cuDeviceTotalMem_v2)
UNUSABLE(cuFuncGetAttribute)
UNUSABLE(cuFuncSetAttribute)
UNUSABLE(cuFuncSetCacheConfig)
UNUSABLE(cuLaunchCooperativeKernel)
UNUSABLE(cuLaunchKernel)
UNUSABLE(cuLaunchKernelEx)
UNUSABLE(cuMemAlloc_v2)
UNUSABLE(cuMemFree_v2)
UNUSABLE(cuMemGetInfo_v2)
UNUSABLE(cuModuleGetFunction)
UNUSABLE(cuModuleLoadData)
UNUSABLE(cuModuleLoadDataEx)
UNUSABLE(cuModuleUnload)
UNUSABLE(cuOccupancyMaxActiveBlocksPerMultiprocessor)
UNUSABLE(cuOccupancyMaxActiveClusters)
UNUSABLE(cuPointerGetAttribute)
UNUSABLE(cuStreamSynchronize)
UNUSABLE(cuTensorMapEncodeIm2col)
UNUSABLE(cuTensorMapEncodeTiled)
