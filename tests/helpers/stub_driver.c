/* NVIDIA's driver API and NVML as far as runtime/cuda/driver.py asks them; what they answer stands in STUB_* variables. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int number(const char *name, int usual) {
    const char *text = getenv(name);
    return text ? atoi(text) : usual;
}

int cuInit(unsigned flags) { return flags ? 1 : number("STUB_INIT", 0); }
int cuGetErrorString(int status, const char **text) { *text = status == 803 ? "system has unsupported driver" : NULL; return 0; }
int cuDriverGetVersion(int *version) { *version = number("STUB_CUDA", 13010); return 0; }
int cuDeviceGetCount(int *count) { *count = number("STUB_GPUS", 2); return 0; }
int cuDeviceGet(int *device, int index) { *device = 10 + index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Stub %d", device); return 0; }
int cuDeviceTotalMem_v2(size_t *size, int device) { (void)device; *size = (size_t)24 << 30; return 0; }
int cuDeviceGetPCIBusId(char *address, int size, int device) { snprintf(address, size, "0000:%d:00.0", device); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? number("STUB_MAJOR", 9) : attribute == 76 ? 0 : -1;
    return 0;
}

int nvmlInit_v2(void) { return number("STUB_NVML", 0); }
int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **handle) { *handle = (void *)(intptr_t)atoi(address + 5); return 0; }
int nvmlDeviceGetMemoryInfo(void *handle, uint64_t *memory) {
    memory[0] = (uint64_t)24 << 30;
    memory[1] = (uint64_t)number("STUB_FREE_MIB", 20000 + (int)(intptr_t)handle) << 20;
    memory[2] = memory[0] - memory[1];
    return 0;
}
