#define SLIM_KERNELS avx2_kernels
#define SLIM_KERNELS_NAME "avx2"
#include "kernels_impl.hpp"
