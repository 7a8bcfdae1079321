/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/pipeline.h - copy a disk: read, decrypt, write, on all loops at once.
 *
 * Several coroutines on each I/O loop take the next piece of data, read it (the
 * driver decrypts it, on that loop), and write what of it is not zero.  So
 * reading, decrypting and writing overlap, and each core decrypts; memory is
 * PIPELINE_MEMORY, whatever the image.
 *
 * Holes and zeroes are never written: the target starts as all zeroes.
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

#include "aio/co.h"
#include "aio/colock.h"

struct progress;
struct root;

enum {
	PIPELINE_CHUNK = 1024 * 1024,
	PIPELINE_MEMORY = 24 * 1024 * 1024,
};

struct pipeline {
	struct root *source;
	struct root *target;		/* NULL: raw_fd is */
	int raw_fd;
	uint32_t grain;			/* zeroes are left out in multiples of this */
	struct progress *progress;

	/* What ended it, if pipeline_run() fails. */
	uint64_t error_at;		/* on the guest disk */
	bool error_in_target;

	/* Private; zero at first. */
	struct co_mutex lock;
	uint64_t at, extent_end;
	bool extent_is_data;
	_Atomic int result;
};

/* Bytes that will be read: all that is not known to be zero. */
int pipeline_measure(struct pipeline *p, uint64_t *ret_bytes);

/* -ECANCELED: pipeline_stop() was called. */
int pipeline_run(struct pipeline *p);

/* Let pipeline_run() end soon. */
void pipeline_stop(struct pipeline *p);

#endif
