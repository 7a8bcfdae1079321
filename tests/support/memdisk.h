/* SPDX-License-Identifier: Apache-2.0 */
/* tests/support/memdisk.h - a disk in memory, as a node, that records what is done
 * to it and fails when told to.
 *
 * Content is kept sparsely grown in one buffer.  Every write, zero, discard,
 * truncate and flush is appended to a log, with its data, so that a test can
 * rebuild what a power cut would have left: memdisk_image() applies the first
 * writes of the log to a copy of the content at the start, and may leave out any
 * that no flush had made safe.
 *
 * Context    memdisk_new/free: anywhere.  memdisk_open: coroutine on loop 0.
 *            I/O on any loop; the log is locked.
 */
#ifndef TESTS_SUPPORT_MEMDISK_H
#define TESTS_SUPPORT_MEMDISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct node;

enum memdisk_op {
	MEMDISK_READ,
	MEMDISK_WRITE,
	MEMDISK_ZERO,
	MEMDISK_DISCARD,
	MEMDISK_FLUSH,
	MEMDISK_TRUNCATE,
	MEMDISK_OPS,
};

struct memdisk_entry {
	enum memdisk_op op;
	unsigned flags;		/* enum io_flag */
	uint64_t off, len;	/* truncate: off is the new size */
	uint8_t *data;		/* of a write */
	uint64_t seq;		/* grows over the entries of all disks */
};

struct memdisk {
	/* Set before memdisk_open(). */
	uint32_t align, mem_align;	/* 0: 1 */
	uint64_t max_transfer;
	uint32_t zero_align, discard_align;
	bool no_zero, no_fua, no_discard;	/* leave the function out */
	bool no_grow;
	unsigned yields;	/* times that a request lets others run first */
	unsigned slow_discard;	/* times that a discard does so besides */

	/* Log and content; read them while nothing is in flight. */
	struct memdisk_entry *log;
	size_t log_count, log_room;
	uint8_t *content;
	uint64_t size, room;
	bool no_log;		/* just keep the content */
	uint64_t max_size;	/* beyond it the disk is full; 0: none */

	/* Faults: the n-th call from now (1: the next) of an op fails with err; with
	 * sticky all later ones too.  count runs down; 0: none. */
	struct memdisk_fault {
		unsigned count;
		int err;
		bool sticky;
	} fault[MEMDISK_OPS];
	/* The same over all ops but reads. */
	struct memdisk_fault any_fault;
	unsigned calls[MEMDISK_OPS];

	struct memdisk_private *private;
};

/* A disk of size bytes, all zero.  NULL: no memory. */
struct memdisk *memdisk_new(uint64_t size);
void memdisk_free(struct memdisk *m);	/* its node is closed */

/* A node over it, with one reference.  Several, one after the other, may be
 * opened over one memdisk: the content stays. */
int memdisk_open(struct memdisk *m, const char *node_name, bool read_only,
		 struct node **ret_node, struct error **errp);

/* ops is a mask of 1 << enum memdisk_op. */
void memdisk_fail(struct memdisk *m, unsigned ops, unsigned nth, int err, bool sticky);
void memdisk_fail_any(struct memdisk *m, unsigned nth, int err, bool sticky);

/* Forget the log; what is there now is safe. */
void memdisk_checkpoint(struct memdisk *m);

/* What a power cut after entry `count` of the log would leave: the content at the
 * last checkpoint, all entries before the last flush among them, and of those
 * behind it the ones for which keep(i, arg) says so (NULL: all).  malloc'ed;
 * *ret_size its length. */
uint8_t *memdisk_image(const struct memdisk *m, size_t count,
		       bool (*keep)(size_t i, void *arg), void *arg, uint64_t *ret_size);

#endif
