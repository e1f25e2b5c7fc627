/* shm/version.h - the version of the whole, as `sluice --version` and GET /version say it. */
#ifndef SLUICE_SHM_VERSION_H
#define SLUICE_SHM_VERSION_H

#define SLUICE_VERSION "0.1.0"

#endif
