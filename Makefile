# Sluice. `make` builds, `make run` starts the demo model, `make test` runs everything; `make help` lists the rest.
# Sources are found by wildcard. A stage is stages/NAME.c with what lies in stages/NAME/; NAME_libs are its own libraries.
MAKEFLAGS += -r
.DEFAULT_GOAL := all
B       ?= build
CC      ?= gcc
CC      := $(if $(filter cc,$(CC)),gcc,$(CC))
OPT     ?= -O2 -g
SAN     ?=
KERNEL_SAN ?= $(SAN)
WARN    ?= -Wall -Wextra -Wshadow -Werror -Wno-format-truncation  # messages are cut to their buffers on purpose
CPPFLAGS := -I. -D_GNU_SOURCE
CFLAGS  := -std=gnu11 $(OPT) $(WARN) -fno-math-errno -ffp-contract=off -fno-omit-frame-pointer
LDFLAGS := $(SAN)
LDLIBS  := -lmsgpackc -ljansson -lyajl -lm -lpthread -ldl
JOBS    ?= $(shell nproc)
ARGS    ?=
# Old-style rpath: it also holds for the libraries that our libraries need (make dist).
rpath    = -Wl,--disable-new-dtags,-rpath,'$$ORIGIN/$1'

# Kernels built for one instruction set carry it in their file name; the rest runs anywhere.
isa_avx2       := -mavx2 -mfma -mf16c
isa_avx512     := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma
isa_avx512bf16 := $(isa_avx512) -mavx512bf16
isa_avx512vbmi := $(isa_avx512) -mavx512vbmi -mavx512vnni
isa = $(or $(if $(filter %_avx2.c,$1),$(isa_avx2)),$(if $(filter %_avx512.c,$1),$(isa_avx512)),$(if $(filter %_avx512bf16.c,$1),$(isa_avx512bf16)),$(if $(filter %_avx512vbmi.c,$1),$(isa_avx512vbmi)))

lib_src    := $(wildcard shm/*.c schemas/*.c model/*.c kernels/*.c kernels/cpu/*.c)
lib_obj    := $(lib_src:%.c=$B/obj/%.o)
stage_src  := $(wildcard stages/*.c)
stages     := $(stage_src:stages/%.c=$B/stages/%)
parts       = $(patsubst %.c,$B/obj/%.o,$(wildcard stages/$1/*.c))
launch_src := $(wildcard launcher/*.c)
launch_obj := $(launch_src:%.c=$B/obj/%.o)
test_src   := $(wildcard tests/unit/*_test.c)
tests      := $(test_src:tests/unit/%.c=$B/tests/%)
bench_src  := $(wildcard bench/*.c)
benches    := $(bench_src:bench/%.c=$B/bench/%)
fuzz_src   := $(wildcard tests/fuzz/*_fuzz.c)
fuzzers    := $(fuzz_src:tests/fuzz/%.c=$B/fuzz/%)
faulty     := $(filter-out %/keeper,$(stage_src:stages/%.c=$B/faulty/%))
all_src    := $(lib_src) $(stage_src) $(wildcard stages/*/*.c) $(launch_src) $(test_src) $(bench_src) $(fuzz_src) tests/faults/fault.c tests/faults/forced.c

gateway_libs := -levent_core -levent_extra -lwslay -lhttp_parser
media_libs   := -ljpeg -lspng -lwebp -lwebpdemux -lsndfile -lsoxr
vision_libs  := $(media_libs) -lseccomp

features     := # what was found on this machine: whoever finds something adds a word
-include schemas/build.mk stages/fetch/build.mk stages/vision/build.mk kernels/cuda/build.mk

.PRECIOUS: $B/obj/%.o
.SECONDEXPANSION:
.PHONY: all run deps tests faulty test check asan fuzzers fuzz bench dist clean help FORCE
all: $B/sluice $(stages) $(benches) $(video_library)
tests: $(tests) $(video_library)
faulty: $(faulty) $B/faulty/libfake_gpu.so $B/faulty/draft_forced
fuzzers: $(fuzzers)

# Anything that changes the flags rebuilds everything that used them, a library that has come or gone as well.
$B/flags: FORCE
	@mkdir -p $B; echo '$(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(KERNEL_SAN) $(LDLIBS) $(features)' | cmp -s - $@ || echo '$(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(KERNEL_SAN) $(LDLIBS) $(features)' > $@

$B/obj/%.o: %.c $B/flags
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(if $(filter kernels/%,$<),$(KERNEL_SAN),$(SAN)) $(call isa,$<) -MMD -MP -c -o $@ $<

$B/libsluice.a: $(lib_obj)
	@rm -f $@; ar rcs $@ $(lib_obj)

$B/sluice: $(launch_obj) $B/libsluice.a
	$(CC) $(LDFLAGS) $(call rpath,lib) -o $@ $^ $(LDLIBS)

$B/stages/%: $B/obj/stages/%.o $$(call parts,$$*) $B/libsluice.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) $(call rpath,../lib) -o $@ $^ $(LDLIBS) $($*_libs)

# The same stages with a fault that a request can set off (tests/faults/fault.c); never part of `all` or `dist`.
$B/faulty/%: $B/obj/stages/%.o $$(call parts,$$*) $B/obj/tests/faults/fault.o $B/libsluice.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) $(call rpath,../lib) -o $@ $^ $(LDLIBS) $($*_libs)

# A draft stage whose proposals are right as often as a measurement wants (tests/faults/forced.c).
$B/faulty/draft_forced: $B/obj/stages/draft.o $(call parts,draft) $B/obj/tests/faults/forced.o $B/libsluice.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) $(call rpath,../lib) -o $@ $^ $(LDLIBS) $(draft_libs)

# And a CUDA library without a GPU behind it: how GPU stages live and die is tested anywhere.
$B/faulty/libfake_gpu.so: tests/faults/fake_gpu.c $(wildcard kernels/cuda/*.h) $B/flags
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -fPIC -shared -o $@ $<

# Unit tests may test parts of the launcher, and of a stage when it has parts; never a file with main().
test_obj := $(filter-out %/main.o,$(launch_obj))
$B/libtested.a: $(test_obj)
	@rm -f $@; ar rcs $@ $^
$B/tests/%: $B/obj/tests/unit/%.o $$(call parts,gateway) $$(call parts,keeper) $$(call parts,vision) $$(call parts,fetch) $$(call parts,draft) $$(call parts,prefill) $B/libtested.a $B/libsluice.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) $(gateway_libs) $(vision_libs) $(fetch_libs) -lcmocka

$B/bench/vision_bench: $(call parts,vision)
$B/bench/%: $B/obj/bench/%.o $B/libsluice.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $(filter-out %.a,$^) $(filter %.a,$^) $(LDLIBS) $(if $(filter %/vision_bench %/webp_bench,$@),$(vision_libs))

$B/fuzz/%: $B/obj/tests/fuzz/%.o $$(call parts,gateway) $B/libsluice.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LDLIBS) $(gateway_libs) $(media_libs)

deps:
	@tests/install build
run: deps
	@$(MAKE) --no-print-directory -j$(JOBS) all
	$B/sluice serve $(ARGS)
test:
	@tests/install test; python3 tests/run
check:
	@python3 tests/run build unit
asan:
	$(MAKE) B=build-asan SAN="-fsanitize=address,undefined -fno-sanitize-recover=all" OPT="-O1 -g" all tests
# The kernels compute, the fuzz targets read: clang needs minutes for sanitized kernels that no target calls.
fuzz:
	$(MAKE) B=build-fuzz CC=clang WARN=-w KERNEL_SAN= SAN="-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined" OPT="-O1 -g" fuzzers
bench: $(benches)
	@set -e; for b in $(benches); do echo "== $$b"; $$b; done

# A tree that runs from anywhere: executables without their debugging information, the demo model, and every shared library that is not part of libc.
# FETCH=no leaves out the stage behind --allow-image-fetch: libcurl and what it needs are 28 libraries of 16 MB.
FETCH       ?= yes
dist_stages := $(if $(filter no,$(FETCH)),$(filter-out %/fetch,$(stages)),$(stages))
dist: $B/sluice $(stages) $(video_dist)
	rm -rf $B/dist && mkdir -p $B/dist/stages $B/dist/lib $B/dist/model
	cp $B/sluice $B/dist/ && cp $(dist_stages) $B/dist/stages/ && cp -r model/demo $B/dist/model/
	strip --strip-debug $B/dist/sluice $B/dist/stages/*
	[ ! -f $B/libsluice_cuda.so ] || cp $B/libsluice_cuda.so $B/dist/lib/
	$(if $(video_dist),cp $(video_dist) $B/dist/lib/)
	ldd $B/sluice $(dist_stages) $(video_dist) | awk '$$2 == "=>" && $$3 ~ /^\// { print $$3 }' | sort -u | \
	  grep -vE '/(libc|libm|libpthread|libdl|librt|libresolv|ld-linux[^/]*)\.so' | xargs -I{} cp -L {} $B/dist/lib/
	@echo "$B/dist is complete: copy it anywhere and start ./sluice serve there"

clean:
	rm -rf build build-asan build-fuzz
help:
	@sed -n 's/^#: //p' Makefile
#: make           build everything into build/
#: make run       install what is missing, build, and serve the demo model (ARGS="--port 9000" adds options)
#: make test      everything: unit tests, sanitizers, fuzzing, CUDA if nvcc is there, end-to-end; ends with "N passed, N failed"
#: make check     the unit tests alone, in seconds
#: make asan      build with address and undefined-behaviour sanitizer into build-asan/
#: make fuzz      build the fuzz targets with clang into build-fuzz/fuzz/
#: make bench     build and run the benchmarks
#: make dist      a tree that runs from any directory, in build/dist/; FETCH=no: without the stage that fetches pictures, 16 MB less; VIDEO_DIST=yes: with what decodes video files, 145 MB more
#: make clean     remove everything that was built

-include $(all_src:%.c=$B/obj/%.d)
