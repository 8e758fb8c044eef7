// Stands for the runtime library of CANN, which the npu backend looks for before it opens torch_npu.
extern "C" int aclInit(const char*) { return 0; }
