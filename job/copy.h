/* SPDX-License-Identifier: Apache-2.0 */
/* job/copy.h - the copy engine that jobs share.
 *
 * Several workers, spread over the I/O loops, take one piece after the other from
 * the job and move it.  The engine keeps to the job's speed, leaves off for a pause
 * or a cancel, and repeats the pieces that failed where the policy says so.
 *
 * Memory is bounded: a worker has one buffer of a chunk.
 *
 * Context    new, run, free: the job's coroutine.  The job's functions are called
 *            in coroutines of any loop, within root_enter() of the root given.
 */
#ifndef JOB_COPY_H
#define JOB_COPY_H

#include <stdbool.h>
#include <stdint.h>

#include "schema/types.h"

struct copy;
struct job;
struct node;
struct root;

enum {
	COPY_CHUNK	 = 1 << 20,	/* of a piece of data, unless clusters are larger */
	COPY_ZERO_CHUNK	 = 1 << 28,	/* of a piece of zeroes */
	COPY_WORKERS	 = 8,
	COPY_WORKERS_MAX = 64,
	COPY_FLUSH_EVERY = 64 << 20,	/* bytes of data */
};

struct copy_piece {
	uint64_t off, len;
	bool zero;
};

struct copy_options {
	struct root *root;
	void *user;
	/* The first piece of work at or after *cursor, with at most `most` bytes of
	 * data (a power of two; pieces end at multiples of it); *cursor is set behind
	 * it.  1: here it is; 0: there is none; -errno: reading failed.  One call at a
	 * time. */
	int (*next)(void *user, uint64_t *cursor, uint64_t most, struct copy_piece *p);
	/* Move p; buf holds p->len bytes unless p is zeroes.  0, or -errno with
	 * *ret_op the side that failed. */
	int (*move)(void *user, const struct copy_piece *p, void *buf,
		    enum IoOperationType *ret_op);
	/* What is written to.  It is flushed now and then, so that the disk is busy
	 * while the rest is copied and the flush at the end, which the caller makes and
	 * which is the one that counts, is short. */
	struct node *target;
	uint64_t granule;	/* pieces are no smaller than this; a power of two */
	uint64_t chunk;		/* 0: COPY_CHUNK */
	unsigned workers;	/* 0: COPY_WORKERS */
	enum BlockdevOnError on_source_error, on_target_error;
};

/* NULL: no memory. */
struct copy *copy_new(struct job *j, const struct copy_options *o);
void copy_free(struct copy *c);		/* takes NULL */

/* From the start, until there is nothing left to move: 0.  -ECANCELED: the job was
 * asked to end.  -errno: it failed, and the policy is to report that. */
int copy_run(struct copy *c);

/* The bytes of [off, off + len) up to the next multiple of most. */
uint64_t copy_cut(uint64_t off, uint64_t len, uint64_t most);

#endif
