/* SPDX-License-Identifier: Apache-2.0 */
/* block/nbd/lib.h - libnbd, loaded when the first node needs it.
 *
 * Linked in the usual way it would bring two dozen libraries into every daemon,
 * TLS and XML among them: twice the time to start and 5 MiB of memory.
 *
 * Calls read lib.nbd_create() and so on; they do what libnbd(3) says.
 */
#ifndef BLOCK_NBD_LIB_H
#define BLOCK_NBD_LIB_H

#include <libnbd.h>

struct error;

#define LIB_FUNCTIONS(X)                                                                \
	X(nbd_add_meta_context)                                                         \
	X(nbd_aio_block_status)                                                         \
	X(nbd_aio_connect_socket)                                                       \
	X(nbd_aio_disconnect)                                                           \
	X(nbd_aio_flush)                                                                \
	X(nbd_aio_get_direction)                                                        \
	X(nbd_aio_is_closed)                                                            \
	X(nbd_aio_is_connecting)                                                        \
	X(nbd_aio_is_dead)                                                              \
	X(nbd_aio_is_ready)                                                             \
	X(nbd_aio_notify_read)                                                          \
	X(nbd_aio_notify_write)                                                         \
	X(nbd_aio_pread_structured)                                                     \
	X(nbd_aio_pwrite)                                                               \
	X(nbd_aio_trim)                                                                 \
	X(nbd_aio_zero)                                                                 \
	X(nbd_can_fast_zero)                                                            \
	X(nbd_can_flush)                                                                \
	X(nbd_can_fua)                                                                  \
	X(nbd_can_meta_context)                                                         \
	X(nbd_can_multi_conn)                                                           \
	X(nbd_can_trim)                                                                 \
	X(nbd_can_zero)                                                                 \
	X(nbd_close)                                                                    \
	X(nbd_create)                                                                   \
	X(nbd_get_block_size)                                                           \
	X(nbd_get_errno)                                                                \
	X(nbd_get_error)                                                                \
	X(nbd_get_size)                                                                 \
	X(nbd_is_read_only)                                                             \
	X(nbd_set_export_name)

struct lib {
#define LIB_MEMBER(name) __typeof__(name) *name;
	LIB_FUNCTIONS(LIB_MEMBER)
#undef LIB_MEMBER
};

extern struct lib lib;

/* Before any call.  Coroutine, may wait for the disk; 0 or -1. */
int lib_load(struct error **errp);

#endif
