# Sluice. `make` builds, `make run` starts the demo model, `make test` runs everything; `make help` lists the rest.
MAKEFLAGS += -r
.DEFAULT_GOAL := all
B       ?= build
CC      ?= gcc
CC      := $(if $(filter cc,$(CC)),gcc,$(CC))
OPT     ?= -O2 -g
SAN     ?=
WARN    := -Wall -Wextra -Wshadow -Werror -Wno-format-truncation  # messages are cut to their buffers on purpose
CPPFLAGS := -I. -D_GNU_SOURCE
CFLAGS  := -std=gnu11 $(OPT) $(SAN) $(WARN) -fno-math-errno -ffp-contract=off -fno-omit-frame-pointer
LDFLAGS := $(SAN)
LDLIBS  := -lmsgpackc -ljansson -lyajl -lm -lpthread
VENV    := .venv
PY      := $(VENV)/bin/python

# Kernels built for one instruction set carry it in their file name; the rest runs anywhere.
isa_avx2       := -mavx2 -mfma
isa_avx512     := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma
isa_avx512bf16 := $(isa_avx512) -mavx512bf16
isa = $(or $(if $(filter %_avx2.c,$1),$(isa_avx2)),$(if $(filter %_avx512.c,$1),$(isa_avx512)),$(if $(filter %_avx512bf16.c,$1),$(isa_avx512bf16)))

lib_src    := $(wildcard shm/*.c schemas/*.c model/*.c kernels/*.c kernels/cpu/*.c)
lib_obj    := $(lib_src:%.c=$B/obj/%.o)
stage_src  := $(wildcard stages/*.c)
stages     := $(stage_src:stages/%.c=$B/stages/%)
launch_obj := $(patsubst %.c,$B/obj/%.o,$(wildcard launcher/*.c))
tests      := $(patsubst tests/unit/%.c,$B/tests/%,$(wildcard tests/unit/*_test.c))
benches    := $(patsubst bench/%.c,$B/bench/%,$(wildcard bench/*.c))
fuzzers    := $(patsubst tests/fuzz/%.c,$B/fuzz/%,$(wildcard tests/fuzz/*_fuzz.c))

gateway_libs := -levent_core -levent_extra -lwslay -lhttp_parser

-include schemas/build.mk kernels/cuda/build.mk

.SECONDARY:
.PHONY: all run deps test check asan fuzz bench clean help FORCE
all: $B/sluice $(stages) $(benches)

# Anything that changes the flags rebuilds everything that used them.
$B/flags: FORCE
	@mkdir -p $B; echo '$(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(LDLIBS)' | cmp -s - $@ || echo '$(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(LDLIBS)' > $@

$B/obj/%.o: %.c $B/flags
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(call isa,$<) -MMD -MP -c -o $@ $<

$B/libsluice.a: $(lib_obj)
	@rm -f $@; ar rcs $@ $(lib_obj)

$B/sluice: $(launch_obj) $B/libsluice.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) -levent_core

$B/stages/%: $B/obj/stages/%.o $B/libsluice.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) $($*_libs)

$B/tests/%: $B/obj/tests/unit/%.o $B/libsluice.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) $(gateway_libs) -lcmocka

$B/bench/%: $B/obj/bench/%.o $B/libsluice.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

clean:
	rm -rf $B

-include $(lib_obj:.o=.d) $(launch_obj:.o=.d) $(patsubst %.c,$B/obj/%.d,$(stage_src) $(wildcard tests/unit/*.c bench/*.c))
