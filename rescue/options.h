/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/options.h - blockdev options for what rescue opens and makes.
 *
 * Every layer and every format is stated, so that nothing is left for an image
 * to decide.
 *
 * Context    any thread.
 * Ownership  callers own what they get: BlockdevOptions_free() and kin.
 * Errors     NULL on no memory.
 */
#ifndef RESCUE_OPTIONS_H
#define RESCUE_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

struct BlockdevCreateOptions;
struct BlockdevOptions;
struct image_chain;

/* Disks are walked from one end to the other, which needs few tables at a time; by default
 * a chain of large images would take more memory than all the rest.  Bytes that are kept,
 * of one image and of all of a chain; for table_memory of struct open_policy. */
enum {
	OPTIONS_TABLE_MEMORY = 1024 * 1024,
	OPTIONS_CHAIN_MEMORY = 4 * OPTIONS_TABLE_MEMORY,
};

/* A chain, to be read only. */
struct BlockdevOptions *options_for_chain(const struct image_chain *chain);

/* Where a target is, and how it is opened. */
struct options_place {
	const char *path;
	bool device, read_only;
	bool direct;		/* bypass the page cache */
};

/* A new qcow2 image in the file there. */
struct options_qcow2 {
	uint64_t size, cluster;
	bool zstd;			/* what compresses clusters, if any are; else zlib */
	const char *backing;		/* a name to be recorded; NULL: none */
	bool backing_is_qcow2;		/* ... as its format; else raw */
};
struct BlockdevCreateOptions *options_create_qcow2(const struct options_place *place,
						   const struct options_qcow2 *how);

/* What is there, by itself: what a qcow2 image names as its backing file is not
 * opened. */
struct BlockdevOptions *options_for_target(const struct options_place *place, bool qcow2);

#endif
