/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/pipeline.h - copy a disk, or compare one with its copy, on all loops.
 *
 * Several coroutines on each I/O loop take the next piece of the disk, read it
 * (the driver decrypts it, on that loop), and write or compare it.  So reading,
 * decrypting and writing overlap, and each core decrypts; memory is
 * PIPELINE_MEMORY, whatever the image.  Where the target or the digest wants
 * its data in order, pieces are read and decrypted side by side all the same,
 * and wait for their turn behind that.
 *
 * Units      bytes.
 * Context    coroutine on loop 0; pipeline_stop() anywhere on loop 0.
 * Errors     0 or -errno.
 */
#ifndef RESCUE_PIPELINE_H
#define RESCUE_PIPELINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "aio/colock.h"
#include "block/io.h"
#include "rescue/lost.h"

struct digest;
struct node;
struct progress;
struct sink;

enum {
	PIPELINE_CHUNK = 1024 * 1024,	/* ... or a cluster, if that is more */
	PIPELINE_MEMORY = 24 * 1024 * 1024,
	PIPELINE_WORKERS = 32,
};

enum pipeline_side { PIPELINE_SOURCE, PIPELINE_TARGET, PIPELINE_DIFFERENT };

struct pipeline {
	struct node *source;
	struct node *base;		/* leave to this layer what it has; NULL: all is wanted */
	unsigned layer;			/* of the source, for lost ranges; 0: the topmost */
	uint64_t step, cluster;		/* the smallest and the largest cluster of the layers */
	uint64_t whole;			/* of the target, what is written at once; 0: any */
	bool starts_zeroed;		/* zeroes need not be written */
	struct sink *sink;
	bool compare;			/* do not write: is it there? */
	uint64_t start;			/* what lies before was written by an earlier run */
	struct progress *progress;
	struct digest *digest;		/* of all the disk, without base; NULL: none wanted */
	struct lost *lost;		/* NULL: the first unreadable place ends it */

	/* What ended it, if pipeline_run() fails. */
	uint64_t error_at;		/* on the guest disk */
	enum pipeline_side error_side;
	struct lost_range error_cause;	/* with PIPELINE_SOURCE */

	/* Private; zero at first. */
	uint64_t chunk;			/* pieces of data do not cross multiples of it */
	struct co_mutex lock;
	uint64_t at, extent_end, next_turn;
	unsigned kind;			/* of the extent */
	uint64_t busy[PIPELINE_WORKERS];	/* where each worker is; UINT64_MAX: nowhere */
	struct co_mutex turn_lock;
	struct co_queue turn_queue;
	uint64_t turn;
	_Atomic int result;
	_Atomic unsigned joined;
};

struct pipeline_size {
	uint64_t data;			/* bytes that will be read */
	uint64_t fresh;			/* ... and that no earlier run has written */
	uint64_t zeroes;
};

/* What there is to do, for a pipeline that is set up but for the sink. */
int pipeline_measure(struct pipeline *p, struct pipeline_size *ret);

/* How many bytes of that will be told to progress; the sink is set. */
uint64_t pipeline_work(const struct pipeline *p, const struct pipeline_size *size);

/* -ECANCELED: pipeline_stop() was called. */
int pipeline_run(struct pipeline *p);

/* Let pipeline_run() end soon. */
void pipeline_stop(struct pipeline *p);

/* Everything before this offset has been handed to the sink.  Coroutine, any loop. */
uint64_t pipeline_done(struct pipeline *p);

#endif
