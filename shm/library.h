/* shm/library.h - where a shared library lies that a process opens when it needs it (the CUDA backend, the video decoder). */
#ifndef SLUICE_SHM_LIBRARY_H
#define SLUICE_SHM_LIBRARY_H

#include <stddef.h>

/* The file that the environment variable `variable` names; without it `name` beside the executable: in ../lib, .., lib or the same directory.
 * 0 and its path; -E_NOT_FOUND: there is none, err names the places. */
int library_find(const char *name, const char *variable, char *path, size_t path_bytes, char *err, size_t err_bytes);

#endif
