/* Stands for a second copy of LibTorch. Loading it ends the process. */
#include <stdlib.h>

__attribute__((constructor)) static void must_not_be_loaded(void) { abort(); }
int torch_of_its_own(void) { return 1; }
