package main

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// Layouts of the library's dcgm_structs.h.
typedef struct { unsigned int version; char raw[512]; } version_info_t;
typedef struct {
	unsigned int version;
	unsigned short field, type;
	int status;
	int64_t microseconds;
	union { int64_t i64; double dbl; char blob[4096]; } value;
} field_value_t;

static void *library;
static void *open_library(const char *name) { return library = dlopen(name, RTLD_LAZY | RTLD_GLOBAL); }
static int has(const char *name) { return dlsym(library, name) != NULL; }
static int init(void) { return ((int (*)(void))dlsym(library, "dcgmInit"))(); }

static int library_version(char *text) {
	version_info_t info = {.version = sizeof info | 2 << 24};
	int code = ((int (*)(version_info_t *))dlsym(library, "dcgmVersionInfo"))(&info);
	memcpy(text, info.raw, sizeof info.raw);
	return code;
}

static int start_embedded(uintptr_t *engine) {
	return ((int (*)(int, uintptr_t *))dlsym(library, "dcgmStartEmbedded"))(1, engine);
}

static int connect_engine(const char *address, uintptr_t *engine) {
	return ((int (*)(const char *, uintptr_t *))dlsym(library, "dcgmConnect"))(address, engine);
}

// Reads one field of GPU 0; the type is 'i' or 'd', 0 where the engine has no value.
static int read_field(uintptr_t engine, unsigned short field, char *type, int64_t *whole, double *real) {
	field_value_t value;
	int code = ((int (*)(uintptr_t, int, unsigned short *, unsigned int, field_value_t *))dlsym(
		library, "dcgmGetLatestValuesForFields"))(engine, 0, &field, 1, &value);
	*type = value.status ? 0 : (char)value.type;
	*whole = value.value.i64;
	*real = value.value.dbl;
	return code;
}
*/
import "C"

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"
)

// What a release calls: the library of another major lacks one of them, and the dynamic linker ends the process.
var symbols = []string{"dcgmInit", "dcgmVersionInfo", "dcgmStartEmbedded", "dcgmConnect", "dcgmGetLatestValuesForFields"}

var errConnectionLost = errors.New("the connection to the host engine is not valid any longer (-21)")

// openLibrary loads and initialises the DCGM library of this release's major.
func openLibrary() error {
	name := C.CString(libraryName)
	defer C.free(unsafe.Pointer(name))
	if C.open_library(name) == nil {
		return errors.New(libraryMissing)
	}
	for _, symbol := range symbols {
		text := C.CString(symbol)
		defer C.free(unsafe.Pointer(text))
		if C.has(text) == 0 {
			lookupError(symbol)
		}
	}
	if code := C.init(); code != 0 {
		return fmt.Errorf("dcgmInit returned %d", int(code))
	}
	raw := (*C.char)(C.calloc(1, 512))
	defer C.free(unsafe.Pointer(raw))
	C.library_version(raw)
	_, version, _ := strings.Cut(C.GoString(raw), "version:")
	if !strings.HasPrefix(version, libraryMajor+".") {
		// The stand-in libraries of both majors have the same few symbols; the real ones do not.
		lookupError("dcgmGetAllDevices")
	}
	return nil
}

func lookupError(symbol string) {
	fmt.Fprintf(os.Stderr, "%s: symbol lookup error: %s: undefined symbol: %s\n", os.Args[0], os.Args[0], symbol)
	os.Exit(127)
}

// engine is the DCGM engine that is asked: a remote one at HOST:PORT, or the one inside this process (no address).
type engine struct{ address string }

func (one engine) connect() (C.uintptr_t, error) {
	var handle C.uintptr_t
	if one.address == "" {
		if code := C.start_embedded(&handle); code != 0 {
			return 0, fmt.Errorf("the engine does not start (%d)", int(code))
		}
		return handle, nil
	}
	address := C.CString(one.address)
	defer C.free(unsafe.Pointer(address))
	if C.connect_engine(address, &handle) != 0 {
		return 0, errConnectionLost
	}
	return handle, nil
}

// read returns the values of the counters by field; a field without a value is left out.
func (one engine) read(counters []counter) (map[string]string, error) {
	handle, err := one.connect()
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for _, each := range counters {
		var kind C.char
		var whole C.int64_t
		var real C.double
		if code := C.read_field(handle, C.ushort(fields[each.field]), &kind, &whole, &real); code != 0 {
			return nil, fmt.Errorf("the engine answered %d", int(code))
		}
		switch kind {
		case 'i':
			values[each.field] = strconv.FormatInt(int64(whole), 10)
		case 'd':
			values[each.field] = strconv.FormatFloat(float64(real), 'f', 6, 64)
		}
	}
	return values, nil
}
