/* Copyright: Contributors to sendense.backup
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The part of VMware's disk library API, version 8, that nbdkit's vddk plugin 1.42 uses. Sizes and order of fields are what
 * its binary expects.
 */
#ifndef VIX_DISK_LIB_H
#define VIX_DISK_LIB_H

#include <stdarg.h>
#include <stdint.h>

#define SECTOR 512

typedef uint64_t VixError;

enum {
  VIX_OK = 0,
  VIX_E_FAIL = 1,
  VIX_E_OUT_OF_MEMORY = 2,
  VIX_E_INVALID_ARG = 3,
  VIX_E_FILE_NOT_FOUND = 4,
  VIX_E_NOT_SUPPORTED = 6,
  VIX_E_DISK_FULL = 8,
  VIX_E_FILE_ACCESS_ERROR = 13,
  VIX_E_HOST_USER_PERMISSIONS = 3014,
  VIX_E_REFUSED = 14009,
  VIX_E_CANNOT_CONNECT_TO_HOST = 18000,
  VIX_ASYNC = 25000,
};

enum { OPEN_READ_ONLY = 4 };

enum { CREDENTIALS_USER = 1 };

typedef struct Connection *VixDiskLibConnection;
typedef struct Disk *VixDiskLibHandle;

typedef void Log(const char *format, va_list values);
typedef void Completed(void *data, VixError result);

typedef struct {
  char *vmxSpec;
  char *serverName;
  char *thumbPrint;
  long reserved1;
  uint32_t credType;
  union {
    struct {
      char *userName;
      char *password;
    } uid;
    struct {
      char *cookie;
      char *userName;
      char *key;
    } sessionId;
  } creds;
  uint32_t port;
  uint32_t nfcHostPort;
  char *reserved3;
  char reserved4[8];
  void *reserved5;
  struct {
    char *id;
    char *datastoreMoRef;
    char *ssId;
  } vStorageObjSpec;
  uint32_t specType;
} VixDiskLibConnectParams;

typedef struct {
  uint32_t cylinders;
  uint32_t heads;
  uint32_t sectors;
} Geometry;

typedef struct {
  Geometry biosGeo;
  Geometry physGeo;
  uint64_t capacity; /* sectors */
  uint32_t adapterType;
  int numLinks;
  char *parentFileNameHint;
  char *uuid;
  uint32_t logicalSectorSize;
  uint32_t physicalSectorSize;
} VixDiskLibInfo;

typedef struct {
  uint64_t offset; /* sectors */
  uint64_t length;
} Block;

typedef struct {
  uint32_t numBlocks;
  Block blocks[];
} VixDiskLibBlockList;

#endif
