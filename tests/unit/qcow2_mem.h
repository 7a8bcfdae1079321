/* SPDX-License-Identifier: Apache-2.0 */
/* tests/unit/qcow2_mem.h - a file in memory, and a qcow2 node over it, made by
 * hand: without options, permissions and locks. */
#ifndef TESTS_UNIT_QCOW2_MEM_H
#define TESTS_UNIT_QCOW2_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct node;
struct qcow2;
struct qcow2_format;

/* What the file does besides storing; shared by all loops. */
struct mem_faults {
	bool yields;		/* every call lets others run first */
	long fail_at;		/* the n-th call from now fails, 0: none */
	int error;		/* with this -errno */
	bool for_good;		/* and all calls behind it */
	bool spare_flush;	/* flushes don't count */
	bool lands;		/* what fails to be written is there all the same */
	uint64_t max;		/* bytes that the file may have; 0: 512 MiB */
};

struct node *mem_new(void);
void mem_free(struct node *n);
struct mem_faults *mem_faults(struct node *n);
/* Calls since the last time that this was asked. */
long mem_calls(struct node *n);
uint8_t *mem_data(struct node *n);	/* its size is the node's */
void mem_save(struct node *n, const char *path);
void mem_load(struct node *n, const char *path);

/* A qcow2 node over file, with or without a backing node; NULL: *ret_error is a
 * copy of the text, to be freed (may be NULL). */
struct node *q2_open(struct node *file, struct node *backing, bool read_only,
		     char **ret_error);
int q2_close(struct node *n);
/* From now on images with an external data file have this one (NULL: there is none). */
void q2_use_data(struct node *data);
/* What the disk was, of len bytes, when the snapshot was taken. */
int q2_read_snapshot(struct node *n, const char *name, uint8_t *buf, uint64_t len);
struct node *q2_make(struct node *file, const struct qcow2_format *f, struct node *backing);

#endif
