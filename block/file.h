/* SPDX-License-Identifier: Apache-2.0 */
/* block/file.h - the file driver's own state, shared by its source files. */
#ifndef BLOCK_FILE_H
#define BLOCK_FILE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "aio/disk.h"
#include "block/lock.h"

struct BlockdevCreateOptions;
struct error;
struct limits;
struct node;

struct file {
	int fd;				/* the number stays; what it refers to may not */
	enum disk_engine engine;
	bool is_device;
	bool writable;			/* fd's mode */
	bool locking;

	/* What the file system turned out not to know. */
	_Atomic bool no_zero_range, no_punch, no_seek;

	struct lock_set held;
	struct lock_set before;		/* of a perm_prepare, for its abort */
	int next_fd;			/* of a perm_prepare: opened for writing; or -1 */
};

/* ---- file_probe.c ---- */

/* What requests on fd must be multiples of; fd was opened with O_DIRECT if direct. */
void file_probe_limits(int fd, const struct stat *st, bool direct, struct limits *l);
/* The size of a file or device.  0 or -errno. */
int file_probe_size(int fd, const struct stat *st, uint64_t *ret_size);

/* ---- file_perm.c: driver functions ---- */

int file_perm_prepare(struct node *n, perm_set perm, perm_set shared,
		      struct error **errp);
void file_perm_commit(struct node *n, perm_set perm, perm_set shared);
void file_perm_abort(struct node *n);
int file_set_read_only(struct node *n, bool read_only, struct error **errp);

/* ---- file_create.c ---- */

int file_create(const struct BlockdevCreateOptions *opts, struct error **errp);
/* Allocate or write [from, to) of fd, which is that large already. */
int file_preallocate(int fd, uint64_t from, uint64_t to, int prealloc);

#endif
