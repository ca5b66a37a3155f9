/* Stands for the NVIDIA driver and the CUDA runtime on a machine without a GPU: one device whose memory is the
 * host's. Everything happens at once and is written to a log, so that a test sees on which stream what was enqueued.
 *
 * Kernels run if the fake nvcc beside this file compiled them: the threads of a block are fibers that take turns at
 * every barrier. Those of a real cubin are launched and do nothing.
 *
 * It says no where the real libraries do: to a module that is not machine code, to a block of more than 1024 threads,
 * to an allocation while a stream is captured, and to everything after an illegal address. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { OK = 0, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, TOO_MANY_RESOURCES = 701,
       CAPTURE_UNSUPPORTED = 900 };

typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream, *attributes;
  unsigned attribute_count;
} Launch;

typedef struct { unsigned x, y, z; } Index;

typedef struct {
  char name[200];
  void (*call)(void **);          /* made by the fake nvcc; NULL in a real cubin */
  int arguments;
  Index *thread, *block, *block_size, *grid_size;
  void (**yield)(void);
} Kernel;

typedef struct {
  Kernel *kernel;
  Launch launch;
  uint64_t values[64];
} Recorded;

typedef struct {
  int size;
  Recorded launches[512];
} Graph;

static char log_text[1 << 22];
static size_t log_size;
static long live_blocks, live_streams;
static uintptr_t next_stream = 0x1000, captured;
static int broken;
static Graph *capture;
static double busy; /* the fake's clock: it counts blocks, and a little for each of their threads */
static Kernel kernels[4096];
static int kernel_count;

static void note(const char *format, ...) {
  va_list values;
  va_start(values, format);
  if (log_size < sizeof log_text - 512) log_size += vsnprintf(log_text + log_size, 512, format, values);
  va_end(values);
}

/* What a test sets, in the environment. */
static int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text && *text ? atoi(text) : otherwise;
}

/* What a test asks. */
const char *fake_log(void) { return log_text; }
void fake_forget(void) { log_size = 0; log_text[0] = 0; }
long fake_live_blocks(void) { return live_blocks; }
long fake_live_streams(void) { return live_streams; }

/* The runtime. */
int cudaGetDeviceCount(int *count) {
  if (number("FAKE_CUDA_DRIVER", 13000) < 13000) return 35;
  *count = number("FAKE_CUDA_DEVICES", 1);
  return *count ? OK : 100;
}
int cudaSetDevice(int device) { return device ? 101 : broken; }
int cudaGetDevice(int *device) { *device = 0; return OK; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  int arch = number("FAKE_CUDA_ARCH", 89);
  switch (attribute) {
    case 1: *value = 1024; return OK;   /* threads in a block */
    case 8: *value = 49152; return OK;  /* bytes of shared memory in a block */
    case 10: *value = 32; return OK;    /* threads in a warp */
    case 75: *value = arch / 10; return OK;
    case 76: *value = arch % 10; return OK;
    default: *value = 0; return OK;
  }
}
int cudaGetDeviceProperties(void *properties, int device) { return 801; }
static int allocate(void **pointer, size_t size) {
  if (captured) return CAPTURE_UNSUPPORTED;
  if (size > (size_t)number("FAKE_CUDA_MEMORY_MB", 1 << 14) << 20) return OUT_OF_MEMORY;
  if (posix_memalign(pointer, 256, size ? size : 1)) return OUT_OF_MEMORY;
  memset(*pointer, 0, size);
  live_blocks++;
  return OK;
}
static int release(void *pointer) { free(pointer); if (pointer) live_blocks--; return OK; }
int cudaMalloc(void **pointer, size_t size) { return allocate(pointer, size); }
int cudaFree(void *pointer) { return release(pointer); }
int cudaMallocHost(void **pointer, size_t size) { return allocate(pointer, size); }
int cudaFreeHost(void *pointer) { return release(pointer); }
int cudaMemGetInfo(size_t *free_bytes, size_t *total) { *free_bytes = *total = (size_t)16 << 30; return OK; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  if (broken) return broken;
  note("copy kind=%d bytes=%zu stream=%zu\n", kind, size, (size_t)stream);
  memcpy(to, from, size);
  return OK;
}
int cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t size, void *stream) { return 801; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { *stream = (void *)next_stream++; live_streams++; return OK; }
int cudaStreamCreate(void **stream) { return cudaStreamCreateWithFlags(stream, 0); }
int cudaStreamDestroy(void *stream) { live_streams--; return OK; }
int cudaStreamSynchronize(void *stream) { note("synchronize stream=%zu\n", (size_t)stream); return broken; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return OK; }
int cudaStreamBeginCapture(void *stream, int mode) {
  captured = (uintptr_t)stream;
  capture = calloc(1, sizeof *capture);
  return OK;
}
int cudaStreamEndCapture(void *stream, void **graph) {
  captured = 0;
  *graph = capture;
  return OK;
}
int cudaGraphInstantiate(void **exec, void *graph, unsigned long long flags) { *exec = graph; return OK; }
int cudaGraphDestroy(void *graph) { return OK; }
int cudaGraphExecDestroy(void *exec) { free(exec); return OK; }
static int run(Kernel *kernel, const Launch *launch, void **arguments);
int cudaGraphLaunch(void *exec, void *stream) {
  Graph *graph = exec;
  note("graph launches=%d stream=%zu\n", graph->size, (size_t)stream);
  for (int i = 0; i < graph->size; i++) {
    Recorded *one = &graph->launches[i];
    void *arguments[64];
    for (int j = 0; j < one->kernel->arguments; j++) arguments[j] = &one->values[j];
    int code = run(one->kernel, &one->launch, arguments);
    if (code) return code;
  }
  return broken;
}
int cudaEventCreate(void **event) { *event = calloc(1, sizeof(double)); return OK; }
int cudaEventDestroy(void *event) { free(event); return OK; }
int cudaEventRecord(void *event, void *stream) { *(double *)event = busy; return broken; }
int cudaEventSynchronize(void *event) { return broken; }
/* Long enough that nobody repeats a kernel to time it. */
int cudaEventElapsedTime(float *milliseconds, void *start, void *stop) {
  *milliseconds = 20 + (*(double *)stop - *(double *)start) / 1000;
  return broken;
}
int cudaGetLastError(void) { return OK; }
int cudaPeekAtLastError(void) { return broken; }
static const char *name_of(int code) {
  switch (code) {
    case OK: return "success";
    case OUT_OF_MEMORY: return "out of memory";
    case INVALID_IMAGE: return "device kernel image is invalid";
    case ILLEGAL_ADDRESS: return "an illegal memory access was encountered";
    case TOO_MANY_RESOURCES: return "too many resources requested for launch";
    case CAPTURE_UNSUPPORTED: return "operation not permitted when stream is capturing";
    default: return "says the fake";
  }
}
const char *cudaGetErrorName(int code) { return name_of(code); }
const char *cudaGetErrorString(int code) { return name_of(code); }

/* The driver. */
int cuInit(unsigned flags) { return number("FAKE_CUDA_DEVICES", 1) ? OK : 100; }
int cuDriverGetVersion(int *version) { *version = number("FAKE_CUDA_DRIVER", 13000); return OK; }
int cuDeviceGetCount(int *count) { *count = number("FAKE_CUDA_DEVICES", 1); return OK; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Fake GPU"); return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { return cudaDeviceGetAttribute(value, attribute, device); }
int cuGetErrorName(int code, const char **name) { *name = name_of(code); return OK; }
int cuGetErrorString(int code, const char **name) { *name = name_of(code); return OK; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return OK; }
int cuTensorMapEncodeTiled(void) { return 801; }

/* Modules and kernels. */
int cuModuleLoadData(void **module, const char *image) {
  if (memcmp(image, "\177ELF", 4)) return INVALID_IMAGE;
  *module = (void *)1;
  if (memcmp(image + 16, "\3\0\76\0", 4)) return OK; /* not a shared library for this kind of machine */
  /* Nobody says how long it is: its section headers end it. */
  uint64_t size = *(const uint64_t *)(image + 40) + *(const uint16_t *)(image + 58) * *(const uint16_t *)(image + 60);
  char path[] = "/tmp/fake-cuda-XXXXXX"; /* each its own: a name that is known already is not loaded again */
  int file = mkstemp(path);
  if (file < 0 || write(file, image, size) != (ssize_t)size) return INVALID_IMAGE;
  close(file);
  void *opened = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  unlink(path);
  if (!opened) return INVALID_IMAGE;
  *module = opened;
  return OK;
}
int cuModuleUnload(void *module) { return OK; }
static void *found(void *module, const char *name, const char *suffix) {
  char whole[256];
  snprintf(whole, sizeof whole, "%s%s", name, suffix);
  return module == (void *)1 ? NULL : dlsym(module, whole);
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  if (kernel_count == sizeof kernels / sizeof *kernels) return NOT_FOUND;
  Kernel *kernel = &kernels[kernel_count++];
  snprintf(kernel->name, sizeof kernel->name, "%s", name);
  kernel->call = (void (*)(void **))found(module, name, "__call");
  if (module != (void *)1 && !kernel->call) return NOT_FOUND;
  if (kernel->call) {
    kernel->arguments = *(int *)found(module, name, "__arguments");
    kernel->thread = found(module, "threadIdx", "");
    kernel->block = found(module, "blockIdx", "");
    kernel->block_size = found(module, "blockDim", "");
    kernel->grid_size = found(module, "gridDim", "");
    kernel->yield = (void (**)(void))found(module, "fake_yield", "");
  }
  *function = kernel;
  return OK;
}

/* Fibers live for ever: each waits for the next block. A context starts one; jumps, which ask no kernel, do the rest. */
enum { STACK = 1 << 16 };
static jmp_buf scheduler, fibers[1024];
static char started[1024], finished[1024], *stacks;
static int current;
static Kernel *running;
static void **running_arguments;
static void yield(void) {
  if (!_setjmp(fibers[current])) _longjmp(scheduler, 1);
}
static void body(void) {
  for (;;) {
    running->call(running_arguments);
    finished[current] = 1;
    yield();
  }
}
static void resume(void) {
  if (_setjmp(scheduler)) return;
  if (started[current]) _longjmp(fibers[current], 1);
  started[current] = 1;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks + (size_t)current * STACK;
  context.uc_stack.ss_size = STACK;
  context.uc_link = NULL;
  makecontext(&context, body, 0);
  setcontext(&context);
}
static void run_block(Index size, int threads) {
  memset(finished, 0, threads);
  for (int left = threads; left;) {
    for (current = 0; current < threads; current++) {
      if (finished[current]) continue;
      *running->thread = (Index){current % size.x, current / size.x % size.y, current / (size.x * size.y)};
      resume();
      left -= finished[current];
    }
  }
}
static int run(Kernel *kernel, const Launch *launch, void **arguments) {
  int threads = launch->block[0] * launch->block[1] * launch->block[2];
  busy += launch->grid[0] * launch->grid[1] * launch->grid[2] + threads / 1000.0;
  if (threads == number("FAKE_CUDA_FATAL_THREADS", 0)) return broken = ILLEGAL_ADDRESS;
  if (!kernel->call) return OK;
  if (!stacks) stacks = mmap(NULL, (size_t)1024 * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  running = kernel;
  running_arguments = arguments;
  *kernel->yield = yield;
  Index grid = {launch->grid[0], launch->grid[1], launch->grid[2]};
  Index size = {launch->block[0], launch->block[1], launch->block[2]};
  *kernel->grid_size = grid;
  *kernel->block_size = size;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        *kernel->block = (Index){x, y, z};
        run_block(size, threads);
      }
  return OK;
}
int cuLaunchKernelEx(const Launch *launch, void *function, void **arguments, void **extra) {
  Kernel *kernel = function;
  if (broken) return broken;
  if (launch->block[0] * launch->block[1] * launch->block[2] > 1024) return TOO_MANY_RESOURCES;
  if (captured && captured == (uintptr_t)launch->stream) {
    if (capture->size == 512 || kernel->arguments > 64) return CAPTURE_UNSUPPORTED;
    Recorded *one = &capture->launches[capture->size++];
    one->kernel = kernel;
    one->launch = *launch;
    for (int i = 0; i < kernel->arguments; i++) memcpy(&one->values[i], arguments[i], 8);
    return OK;
  }
  note("launch %s stream=%zu\n", kernel->name, (size_t)launch->stream);
  return run(kernel, launch, arguments);
}
