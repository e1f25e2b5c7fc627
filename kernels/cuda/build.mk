# kernels/cuda/build.mk - the CUDA backend: a shared object opened at run time, and its benches. Included by the top Makefile.
# Only nvcc is needed, no GPU and no driver. sm_90a: the Hopper instructions (bulk copies, mbarrier) are not in plain PTX targets.
NVCC      ?= $(or $(shell command -v nvcc 2>/dev/null),$(wildcard /usr/local/cuda/bin/nvcc))
NVCCFLAGS := -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -I. -Xcompiler -fPIC,-Wall,-Wextra --Werror all-warnings
cuda_obj  := $(patsubst %.cu,$B/cuda/%.o,$(wildcard kernels/cuda/*.cu)) $B/cuda/kernels/cuda/arena.o $B/cuda/kernels/cuda/draft_layout.o $B/cuda/model/forward_rope.o $B/cuda/shm/must.o
cuda_bins := $(patsubst bench/cuda/%.cu,$B/bench/cuda_%,$(wildcard bench/cuda/*.cu)) $(patsubst tests/gpu/%.cu,$B/tests/cuda_%,$(wildcard tests/gpu/*.cu))
cuda_ctests := $(patsubst tests/gpu/%.c,$B/tests/cuda_%,$(wildcard tests/gpu/*.c))

.PHONY: cuda
ifeq ($(NVCC),)
cuda:
	@echo 'cuda: skipped, no nvcc found (set NVCC=...)'
else
cuda_extra := $(patsubst %.cu,$B/cuda/%.o,$(wildcard bench/cuda/*.cu tests/gpu/*.cu))
.SECONDARY: $(cuda_extra)
cuda: $B/libsluice_cuda.so $(cuda_bins) $(cuda_ctests)

$B/cuda/%.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<

$B/cuda/%.o: %.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -g -I. -D_GNU_SOURCE -fPIC -Wall -Wextra -Wshadow -Werror -MMD -MP -c -o $@ $<

# The CUDA runtime is linked statically: the machine that runs it needs the driver only.
$B/libsluice_cuda.so: $(cuda_obj)
	$(NVCC) -shared -cudart static -Xlinker -z,defs -o $@ $^

# With their own copies of the objects: tests reach functions that the shared object's users do not see.
$B/bench/cuda_%: $B/cuda/bench/cuda/%.o $(cuda_obj)
	@mkdir -p $(@D)
	$(NVCC) -cudart static -o $@ $^

$B/tests/cuda_%: $B/cuda/tests/gpu/%.o $(cuda_obj)
	@mkdir -p $(@D)
	$(NVCC) -cudart static -o $@ $^

# Tests that need the CPU backend as well: plain C. The libraries are linked in whole, so that only the driver is needed where they run.
$(cuda_ctests): $B/tests/cuda_%: tests/gpu/%.c $(cuda_obj) $B/libsluice.a
	@mkdir -p $(@D) $B/cuda/tests/gpu
	$(CC) $(CPPFLAGS) $(CFLAGS) -isystem $(patsubst %/bin/nvcc,%,$(NVCC))/include -MMD -MP -c -o $B/cuda/tests/gpu/$*.o $<
	$(NVCC) -cudart static -o $@ $B/cuda/tests/gpu/$*.o $(cuda_obj) $B/libsluice.a -l:libmsgpackc.a -l:libjansson.a -l:libyajl_s.a -lm -lpthread -ldl

-include $(cuda_obj:.o=.d) $(patsubst tests/gpu/%.c,$B/cuda/tests/gpu/%.d,$(wildcard tests/gpu/*.c)) $(patsubst %.cu,$B/cuda/%.d,$(wildcard bench/cuda/*.cu tests/gpu/*.cu))
endif
