/* Copyright: Contributors to sendense.backup
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A stand-in for VMware's disk library, for the lab: it has the functions that nbdkit's vddk plugin calls, and reads and writes
 * disks of the lab's vCenter by a protocol of the lab's own (lab/vcenter/README.md, "Port 902"). There is nothing of VMware in
 * it, and it is of no use with a real vCenter.
 *
 * Requests on an open disk are answered in the order they were made, so each disk has a queue of what is on its way and a
 * thread that takes the answers.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vixDiskLib.h"

#define API __attribute__((visibility("default")))
#define NFC_PORT 902
#define LINE 4096

enum { READ = 1, ALLOCATED = 2, WRITE = 3, FLUSH = 4 };

struct Connection {
  char *server;
  uint16_t port;
  char *login; /* the lines to begin with */
};

struct Answer {
  VixError error;
  uint8_t *bytes;
  uint64_t length;
};

struct Request {
  struct Request *next;
  uint8_t *buffer; /* where the answer goes, unless its length is not known before */
  uint64_t length;
  struct Answer *unknown; /* where it is kept then */
  Completed *done;
  void *data;
};

struct Disk {
  int socket;
  uint64_t capacity; /* bytes */
  pthread_t receiver;
  pthread_mutex_t lock;
  pthread_cond_t moved; /* a request came or went, or the end is near */
  struct Request *first, *last;
  bool closing;
  bool broken;
};

static Log *log_function, *warn_function;

static void say(Log *function, const char *format, ...)
{
  va_list values;

  if (!function)
    return;
  va_start(values, format);
  function(format, values);
  va_end(values);
}

/* ---- errors ---- */

API char *VixDiskLib_GetErrorText(VixError error, const char *locale)
{
  static const struct { VixError error; const char *text; } texts[] = {
    { VIX_OK, "The operation was successful" },
    { VIX_E_OUT_OF_MEMORY, "Memory allocation failed. Out of memory" },
    { VIX_E_INVALID_ARG, "One of the parameters was invalid" },
    { VIX_E_FILE_NOT_FOUND, "A file was not found" },
    { VIX_E_DISK_FULL, "The file system is full" },
    { VIX_E_NOT_SUPPORTED, "The operation is not supported" },
    { VIX_E_FILE_ACCESS_ERROR, "You do not have access rights to this file" },
    { VIX_E_HOST_USER_PERMISSIONS, "Insufficient permissions in the host operating system" },
    { VIX_E_REFUSED, "The server refused connection" },
    { VIX_E_CANNOT_CONNECT_TO_HOST, "Cannot connect to the host" },
  };

  (void)locale;
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
    if (texts[i].error == error)
      return strdup(texts[i].text);
  return strdup("Unknown error");
}

API void VixDiskLib_FreeErrorText(char *text)
{
  free(text);
}

static VixError wrong(const char *what)
{
  say(warn_function, "VixDiskLib: %s", what);
  return VIX_E_INVALID_ARG;
}

/* ---- the wire ---- */

static bool send_all(int socket, const void *from, size_t length)
{
  for (const char *at = from; length;) {
    ssize_t sent = send(socket, at, length, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR)
      continue;
    if (sent <= 0)
      return false;
    at += sent;
    length -= (size_t)sent;
  }
  return true;
}

static bool receive_all(int socket, void *into, size_t length)
{
  for (char *at = into; length;) {
    ssize_t received = recv(socket, at, length, 0);
    if (received < 0 && errno == EINTR)
      continue;
    if (received <= 0)
      return false;
    at += received;
    length -= (size_t)received;
  }
  return true;
}

/* Read the server's "ok NUMBER" or "error CODE TEXT". */
static VixError answer(int socket, uint64_t *number)
{
  char line[LINE], text[LINE] = "";
  size_t length = 0;
  VixError error = VIX_E_FAIL;

  do
    if (length == sizeof line - 1 || !receive_all(socket, line + length, 1)) {
      say(warn_function, "[NFC ERROR] the server hung up");
      return VIX_E_CANNOT_CONNECT_TO_HOST;
    }
  while (line[length++] != '\n');
  line[length - 1] = '\0';
  if (strncmp(line, "ok", 2) == 0) {
    if (number)
      sscanf(line, "ok %" SCNu64, number);
    return VIX_OK;
  }
  sscanf(line, "error %" SCNu64 " %[^\n]", &error, text);
  say(warn_function, "[NFC ERROR] %s", text);
  return error;
}

/* Connect, log in and store the socket. */
static VixError dial(const struct Connection *to, int *made)
{
  struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
  char port[8];
  int one = 1, sock = -1;
  VixError error;

  snprintf(port, sizeof port, "%" PRIu16, to->port);
  int failed = getaddrinfo(to->server, port, &hints, &found);
  if (failed) {
    say(warn_function, "[NFC ERROR] %s: %s", to->server, gai_strerror(failed));
    return VIX_E_CANNOT_CONNECT_TO_HOST;
  }
  for (struct addrinfo *each = found; each && sock < 0; each = each->ai_next) {
    sock = socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (sock >= 0 && connect(sock, each->ai_addr, each->ai_addrlen) < 0) {
      failed = errno;
      close(sock);
      sock = -1;
    }
  }
  freeaddrinfo(found);
  if (sock < 0) {
    say(warn_function, "[NFC ERROR] Failed to connect to server %s:%s: %s", to->server, port, strerror(failed));
    return VIX_E_CANNOT_CONNECT_TO_HOST;
  }
  setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  error = send_all(sock, to->login, strlen(to->login)) ? answer(sock, NULL) : VIX_E_CANNOT_CONNECT_TO_HOST;
  if (error)
    close(sock);
  else
    *made = sock;
  return error;
}

/* ---- the library ---- */

API VixError VixDiskLib_InitEx(uint32_t major, uint32_t minor, Log *log, Log *warn, Log *panic, const char *libdir,
                               const char *config)
{
  (void)panic, (void)config;
  log_function = log;
  warn_function = warn;
  say(log, "VixDiskLib: the lab's stand-in, not VMware's; asked for %" PRIu32 ".%" PRIu32 " in %s", major, minor, libdir);
  return VIX_OK;
}

API void VixDiskLib_Exit(void)
{
}

API const char *VixDiskLib_ListTransportModes(void)
{
  return "nbdssl:nbd";
}

API VixDiskLibConnectParams *VixDiskLib_AllocateConnectParams(void)
{
  return calloc(1, sizeof(VixDiskLibConnectParams));
}

API void VixDiskLib_FreeConnectParams(VixDiskLibConnectParams *params)
{
  free(params); /* the strings are the caller's */
}

/* Whether it is twenty hexadecimal bytes with colons between them. */
static bool is_thumbprint(const char *text)
{
  size_t i;

  for (i = 0; text && text[i]; i++)
    if (i % 3 == 2 ? text[i] != ':' : !strchr("0123456789ABCDEFabcdef", text[i]))
      return false;
  return i == 20 * 3 - 1;
}

static bool one_line(const char *text)
{
  return text && !strchr(text, '\n');
}

API VixError VixDiskLib_ConnectEx(const VixDiskLibConnectParams *params, char read_only, const char *snapshot,
                                  const char *modes, VixDiskLibConnection *made)
{
  static const char moref[] = "moref=";
  const char *user = params->creds.uid.userName, *password = params->creds.uid.password;
  struct Connection *connection;
  VixError error;
  int sock;

  (void)read_only; /* what counts is the flag of Open */
  if (!params->serverName || !params->vmxSpec)
    return wrong("the stand-in opens disks of VMs at a server only");
  if (strncmp(params->vmxSpec, moref, strlen(moref)) != 0)
    return wrong("the VM is given as moref=ID");
  if (params->credType != CREDENTIALS_USER || !one_line(user) || !one_line(password))
    return wrong("the stand-in takes user and password only");
  if (!is_thumbprint(params->thumbPrint))
    return wrong("the thumbprint is the certificate's SHA-1 as AA:BB:CC…");
  if (!one_line(params->vmxSpec) || (snapshot && !one_line(snapshot)))
    return wrong("an id has a line break");
  if (modes && !strstr(modes, "nbd")) {
    say(warn_function, "VixDiskLib: of the transports %s none is to be had; there are: nbdssl nbd", modes);
    return VIX_E_NOT_SUPPORTED;
  }
  connection = calloc(1, sizeof *connection);
  if (!connection)
    return VIX_E_OUT_OF_MEMORY;
  connection->port = params->nfcHostPort ? (uint16_t)params->nfcHostPort : NFC_PORT;
  connection->server = strdup(params->serverName);
  if (!connection->server ||
      asprintf(&connection->login, "lab-nfc 1\nuser %s\npassword %s\nthumbprint %s\nvm %s\nsnapshot %s\n\n", user, password,
               params->thumbPrint, params->vmxSpec + strlen(moref), snapshot ? snapshot : "") < 0) {
    connection->login = NULL;
    error = VIX_E_OUT_OF_MEMORY;
  } else if (!(error = dial(connection, &sock)))
    close(sock); /* each disk has a connection of its own */
  if (error) {
    free(connection->server);
    free(connection->login);
    free(connection);
  } else
    *made = connection;
  return error;
}

API VixError VixDiskLib_Disconnect(VixDiskLibConnection connection)
{
  explicit_bzero(connection->login, strlen(connection->login));
  free(connection->login);
  free(connection->server);
  free(connection);
  return VIX_OK;
}

/* ---- an open disk ---- */

/* Take the answer to a request that is on its way. */
static VixError take(struct Disk *disk, struct Request *request)
{
  struct { uint32_t status; uint64_t length; } __attribute__((packed)) head;
  char text[LINE] = "";

  if (disk->broken || !receive_all(disk->socket, &head, sizeof head))
    goto lost;
  head.length = be64toh(head.length);
  if (head.status) {
    if (head.length >= sizeof text || !receive_all(disk->socket, text, head.length))
      goto lost;
    say(warn_function, "[NFC ERROR] %s", text);
    return be32toh(head.status);
  }
  if (request->unknown) {
    request->buffer = request->unknown->bytes = malloc(head.length ? head.length : 1);
    request->length = request->unknown->length = head.length;
  }
  if (!request->buffer || head.length != request->length || !receive_all(disk->socket, request->buffer, head.length))
    goto lost;
  return VIX_OK;

lost:
  if (!disk->broken)
    say(warn_function, "[NFC ERROR] the connection to the server is lost");
  disk->broken = true;
  return VIX_E_CANNOT_CONNECT_TO_HOST;
}

static void *receive(void *of)
{
  struct Disk *disk = of;

  pthread_mutex_lock(&disk->lock);
  while (true) {
    struct Request *request = disk->first;
    if (!request && disk->closing)
      break;
    if (!request) {
      pthread_cond_wait(&disk->moved, &disk->lock);
      continue;
    }
    pthread_mutex_unlock(&disk->lock);
    request->done(request->data, take(disk, request));
    pthread_mutex_lock(&disk->lock);
    disk->first = request->next;
    if (!disk->first)
      disk->last = NULL;
    pthread_cond_broadcast(&disk->moved);
    free(request);
  }
  pthread_mutex_unlock(&disk->lock);
  return NULL;
}

/* Send a request; it answers by its callback, from the disk's thread, even when sending fails. */
static VixError ask(struct Disk *disk, uint32_t what, uint64_t sector, uint64_t sectors, const void *data, struct Request wish)
{
  struct { uint32_t what; uint64_t offset, length; } __attribute__((packed)) message = {
    htobe32(what), htobe64(sector * SECTOR), htobe64(sectors * SECTOR)
  };
  struct Request *request = malloc(sizeof *request);

  if (!request)
    return VIX_E_OUT_OF_MEMORY;
  *request = wish;
  pthread_mutex_lock(&disk->lock);
  if (disk->last)
    disk->last->next = request;
  else
    disk->first = request;
  disk->last = request;
  if (!send_all(disk->socket, &message, sizeof message) || (data && !send_all(disk->socket, data, sectors * SECTOR)))
    shutdown(disk->socket, SHUT_RDWR); /* the thread finds out */
  pthread_cond_broadcast(&disk->moved);
  pthread_mutex_unlock(&disk->lock);
  return VIX_ASYNC;
}

API VixError VixDiskLib_Open(VixDiskLibConnection connection, const char *path, uint32_t flags, VixDiskLibHandle *made)
{
  struct Disk *disk;
  char *wish = NULL;
  VixError error;

  if (!one_line(path))
    return wrong("the path has a line break");
  disk = calloc(1, sizeof *disk);
  if (!disk)
    return VIX_E_OUT_OF_MEMORY;
  error = dial(connection, &disk->socket);
  if (error)
    goto failed;
  error = VIX_E_CANNOT_CONNECT_TO_HOST;
  if (asprintf(&wish, "open %s %s\n", flags & OPEN_READ_ONLY ? "ro" : "rw", path) >= 0 &&
      send_all(disk->socket, wish, strlen(wish)))
    error = answer(disk->socket, &disk->capacity);
  free(wish);
  pthread_mutex_init(&disk->lock, NULL);
  pthread_cond_init(&disk->moved, NULL);
  if (!error && pthread_create(&disk->receiver, NULL, receive, disk) != 0)
    error = VIX_E_OUT_OF_MEMORY;
  if (!error) {
    *made = disk;
    return VIX_OK;
  }
  close(disk->socket);
failed:
  free(disk);
  return error;
}

API VixError VixDiskLib_Close(VixDiskLibHandle disk)
{
  pthread_mutex_lock(&disk->lock);
  disk->closing = true;
  pthread_cond_broadcast(&disk->moved);
  pthread_mutex_unlock(&disk->lock);
  pthread_join(disk->receiver, NULL);
  close(disk->socket);
  pthread_cond_destroy(&disk->moved);
  pthread_mutex_destroy(&disk->lock);
  free(disk);
  return VIX_OK;
}

API const char *VixDiskLib_GetTransportMode(VixDiskLibHandle disk)
{
  (void)disk;
  return "nbdssl";
}

API VixError VixDiskLib_GetInfo(VixDiskLibHandle disk, VixDiskLibInfo **made)
{
  VixDiskLibInfo *info = calloc(1, sizeof *info);

  if (!info)
    return VIX_E_OUT_OF_MEMORY;
  info->capacity = disk->capacity / SECTOR;
  info->numLinks = 1;
  info->logicalSectorSize = info->physicalSectorSize = SECTOR;
  *made = info;
  return VIX_OK;
}

API void VixDiskLib_FreeInfo(VixDiskLibInfo *info)
{
  free(info);
}

API VixError VixDiskLib_ReadAsync(VixDiskLibHandle disk, uint64_t sector, uint64_t sectors, unsigned char *buffer,
                                  Completed *done, void *data)
{
  return ask(disk, READ, sector, sectors, NULL,
             (struct Request){ .buffer = buffer, .length = sectors * SECTOR, .done = done, .data = data });
}

API VixError VixDiskLib_Wait(VixDiskLibHandle disk)
{
  pthread_mutex_lock(&disk->lock);
  while (disk->first)
    pthread_cond_wait(&disk->moved, &disk->lock);
  pthread_mutex_unlock(&disk->lock);
  return VIX_OK;
}

static void keep(void *data, VixError result)
{
  *(VixError *)data = result;
}

API VixError VixDiskLib_Read(VixDiskLibHandle disk, uint64_t sector, uint64_t sectors, unsigned char *buffer)
{
  VixError result = VIX_OK, asked = VixDiskLib_ReadAsync(disk, sector, sectors, buffer, keep, &result);

  if (asked != VIX_ASYNC)
    return asked;
  VixDiskLib_Wait(disk);
  return result;
}

API VixError VixDiskLib_QueryAllocatedBlocks(VixDiskLibHandle disk, uint64_t sector, uint64_t sectors, uint64_t chunk,
                                             VixDiskLibBlockList **made)
{
  struct Answer answer = { .error = VIX_OK };
  VixDiskLibBlockList *list;
  VixError asked;
  uint32_t count;

  if (chunk == 0 || sector % chunk || sectors % chunk || (sector + sectors) * SECTOR > disk->capacity)
    return VIX_E_INVALID_ARG;
  asked = ask(disk, ALLOCATED, sector, sectors, NULL,
              (struct Request){ .unknown = &answer, .done = keep, .data = &answer.error });
  if (asked != VIX_ASYNC)
    return asked;
  VixDiskLib_Wait(disk);
  count = (uint32_t)(answer.length / sizeof(Block));
  list = answer.error ? NULL : malloc(sizeof *list + answer.length);
  if (list) {
    list->numBlocks = count;
    memcpy(list->blocks, answer.bytes, count * sizeof(Block));
    for (uint32_t i = 0; i < count; i++) {
      list->blocks[i].offset = be64toh(list->blocks[i].offset) / SECTOR;
      list->blocks[i].length = be64toh(list->blocks[i].length) / SECTOR;
    }
    *made = list;
  } else if (!answer.error)
    answer.error = VIX_E_OUT_OF_MEMORY;
  free(answer.bytes);
  return answer.error;
}

API VixError VixDiskLib_FreeBlockList(VixDiskLibBlockList *list)
{
  free(list);
  return VIX_OK;
}

/* ---- writing ---- */

API VixError VixDiskLib_WriteAsync(VixDiskLibHandle disk, uint64_t sector, uint64_t sectors, const unsigned char *buffer,
                                   Completed *done, void *data)
{
  static uint8_t nothing; /* the answer has no bytes, and no length that was not known */

  return ask(disk, WRITE, sector, sectors, buffer,
             (struct Request){ .buffer = &nothing, .length = 0, .done = done, .data = data });
}

API VixError VixDiskLib_Write(VixDiskLibHandle disk, uint64_t sector, uint64_t sectors, const unsigned char *buffer)
{
  VixError result = VIX_OK, asked = VixDiskLib_WriteAsync(disk, sector, sectors, buffer, keep, &result);

  if (asked != VIX_ASYNC)
    return asked;
  VixDiskLib_Wait(disk);
  return result;
}

API VixError VixDiskLib_Flush(VixDiskLibHandle disk)
{
  static uint8_t nothing;
  VixError result = VIX_OK, asked = ask(disk, FLUSH, 0, 0, NULL,
                                        (struct Request){ .buffer = &nothing, .done = keep, .data = &result });

  if (asked != VIX_ASYNC)
    return asked;
  VixDiskLib_Wait(disk);
  return result;
}

API VixError VixDiskLib_Create(VixDiskLibConnection connection, const char *path, const void *wish, void *progress, void *data)
{
  (void)connection, (void)path, (void)wish, (void)progress, (void)data;
  return VIX_E_NOT_SUPPORTED;
}
