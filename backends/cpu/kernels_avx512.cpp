#define SLIM_KERNELS avx512_kernels
#define SLIM_KERNELS_NAME "avx512"
#include "kernels_impl.hpp"
