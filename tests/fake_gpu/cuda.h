/* As much of CUDA C++ as TVM's kernels use, for the host's compiler: see fake_gpu.c for how they run. */
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

struct Index {
  unsigned x, y, z;
};
extern "C" {
Index threadIdx, blockIdx, blockDim, gridDim;
void (*fake_yield)();
}

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

template <class T>
struct Two {
  T x, y;
};
template <class T>
struct Four {
  T x, y, z, w;
};
#define VECTORS(type, name)                                                            \
  using name##2 = Two<type>;                                                           \
  using name##4 = Four<type>;                                                          \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                     \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
VECTORS(float, float)
VECTORS(double, double)
VECTORS(signed char, char)
VECTORS(unsigned char, uchar)
VECTORS(short, short)
VECTORS(unsigned short, ushort)
VECTORS(int, int)
VECTORS(unsigned, uint)
VECTORS(long long, longlong)
#undef VECTORS

using std::max;
using std::min;
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

inline void __syncthreads() { fake_yield(); }
inline unsigned __activemask() { return ~0u; }

/* Threads of a warp exchange values: all write, then all read, then all go on. */
template <class T>
T __shfl_down_sync(unsigned, T value, int delta, int = 32) {
  static T slots[1024];
  unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  slots[thread] = value;
  fake_yield();
  T other = (thread % 32) + delta < 32 ? slots[thread + delta] : value;
  fake_yield();
  return other;
}
template <class T>
T __shfl_sync(unsigned, T value, int lane, int = 32) {
  static T slots[1024];
  unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  slots[thread] = value;
  fake_yield();
  T other = slots[thread / 32 * 32 + lane % 32];
  fake_yield();
  return other;
}
