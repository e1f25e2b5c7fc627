/* shm/remove.h - removes a directory that holds files only. */
#ifndef SLUICE_SHM_REMOVE_H
#define SLUICE_SHM_REMOVE_H

/* Unlinks what lies in `path` (files, sockets, pipes; nothing below sub-directories) and the directory itself; one that is not there is fine.
 * For directories of our own making, when whoever used them is gone. 0, or -E_IO when something stays behind. Any process. */
int remove_flat_dir(const char *path);

#endif
