/* SPDX-License-Identifier: Apache-2.0 */
/* block/filters/cbw_int.h - what the files of copy-before-write share. */
#ifndef BLOCK_FILTERS_CBW_INT_H
#define BLOCK_FILTERS_CBW_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/ranges.h"
#include "schema/types.h"

struct bitmap;
struct edge;
struct instant_ops;

enum { CBW_PIECE_MAX = 1 << 20 };

struct cbw {
	struct edge *target;
	enum OnCbwError on_error;
	bool discard_source, compress;
	_Atomic bool stopped;	/* nothing is copied any more; read by requests */
	unsigned target_flags;	/* of each write to the target */
	uint64_t cluster;
	_Atomic int broken;
	struct ranges copying;
	pthread_mutex_t lock;
	/* A cluster's old content is in the source (in both sets), at the target (not in
	 * todo), or nowhere (in none). */
	struct bitmap *todo, *known;
};

extern const struct instant_ops cbw_instant_ops;

#endif
