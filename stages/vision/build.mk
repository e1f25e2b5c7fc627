# libsluice_video.so decodes video files (schemas/video.h). libav is there or it is not (VIDEO=no: as if it were not); without it everything else is built, and
# video files are refused with words. It is no part of any executable: libav brings 130 libraries along, and `make dist` carries them on demand only: it grows from 70 to
# 215 MB by them.
VIDEO      ?= $(if $(shell pkg-config --exists libavformat libavcodec libavutil libswscale 2>/dev/null && echo yes),yes,no)
VIDEO_DIST ?= no
video_obj  := $(patsubst %.c,$B/video/%.o,$(wildcard stages/vision/video/*.c))
video_libs := -lavformat -lavcodec -lswscale -lavutil -lm

ifeq ($(VIDEO),yes)
video_library := $B/libsluice_video.so
video_dist    := $(if $(filter yes,$(VIDEO_DIST)),$(video_library))

$B/video/%.o: %.c $B/flags
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(SAN) -fPIC -fvisibility=hidden -MMD -MP -c -o $@ $<

$(video_library): $(video_obj)
	$(CC) $(LDFLAGS) -shared $(if $(SAN),,-Wl,-z,defs) $(call rpath,.) -o $@ $^ $(video_libs)

$B/fuzz/video_fuzz: $(video_obj)
$B/fuzz/video_fuzz: media_libs += $(video_libs)

-include $(video_obj:.o=.d)
else
fuzzers := $(filter-out %/video_fuzz,$(fuzzers))
endif
