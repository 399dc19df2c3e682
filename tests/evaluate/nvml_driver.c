/* A driver library of a machine with two GPUs, as far as Zeus asks it: every read of an energy counter finds 1.5 J more.
 * GPU 1 is like a slice of a GPU (MIG): it has no counter. */
#include <string.h>

#define SUCCESS 0
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3

static char gpus[2];
static unsigned long long millijoules = 1000;

int nvmlInitWithFlags(unsigned int flags) { return SUCCESS; }
int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int result) {
    return result == NOT_SUPPORTED ? "Not Supported" : result == INVALID_ARGUMENT ? "Invalid Argument" : "Success";
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = 2;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    if (index > 1) return INVALID_ARGUMENT;
    *device = &gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *name, unsigned int length) {
    strncpy(name, "A GPU", length);
    return SUCCESS;
}

int nvmlDeviceGetArchitecture(void *device, unsigned int *architecture) {
    *architecture = 9; /* Hopper */
    return SUCCESS;
}

int nvmlDeviceGetC2cModeInfoV(void *device, void *info) { return NOT_SUPPORTED; }

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy) {
    if (device == &gpus[1]) return NOT_SUPPORTED;
    *energy = millijoules += 1500;
    return SUCCESS;
}
