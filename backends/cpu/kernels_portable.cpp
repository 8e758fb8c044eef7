#define SLIM_KERNELS portable_kernels
#define SLIM_KERNELS_NAME "portable"
#include "kernels_impl.hpp"
