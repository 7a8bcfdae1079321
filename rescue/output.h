/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/output.h - the target of one copy: made, filled, finished, named.
 *
 *	check	could it be made?  nothing is touched
 *	open	a file has no name yet; devices and exports are claimed
 *	sink	what a pipeline writes to
 *	finish	all of it is on stable storage
 *	reopen	read it back, past the cache
 *	publish	a file gets its name
 *
 * Units      bytes.
 * Context    coroutine on loop 0.
 * Errors     0 or -1 with *errp.
 */
#ifndef RESCUE_OUTPUT_H
#define RESCUE_OUTPUT_H

#include <stdbool.h>
#include <stdint.h>

struct error;
struct image_chain;
struct output;
struct sink;

enum output_kind { OUTPUT_FILE, OUTPUT_DEVICE, OUTPUT_NBD, OUTPUT_STREAM };

enum output_packing { OUTPUT_STORED, OUTPUT_ZLIB, OUTPUT_ZSTD };

struct output_spec {
	const char *name;		/* as the user gave it */
	enum output_kind kind;
	bool qcow2, force;
	int folder;			/* that is open and new; -1: that of name */
	bool partial;			/* outlives the run; see rescue/target.h */
	int stop;			/* of exports and streams; see rescue/sink.h */
	uint64_t cluster;		/* of qcow2 */
	bool whole;			/* each is to be written at once, or left to the backing */
	enum output_packing packing;	/* of qcow2 */
	const char *backing;		/* recorded in qcow2; NULL: none */
	bool backing_is_qcow2;		/* ... as its format; else raw */
};

enum { OUTPUT_CLUSTER = 65536 };	/* of qcow2, where nothing speaks for another */

/* "-" is standard output; what is a block device now is one; NBD has URIs. */
enum output_kind output_kind_of(const char *name);

/* Before anything is opened; chain is what will be read and must not be hit. */
int output_check(const struct output_spec *spec, const struct image_chain *chain,
		 struct error **errp);

/* For a disk of this size.  What lies before start is in a partial file already, as an
 * earlier run recorded. */
int output_open(const struct output_spec *spec, uint64_t size, uint64_t start,
		struct output **ret, struct error **errp);

/* Does what was never written to it read as zeroes? */
bool output_starts_zeroed(const struct output_spec *spec);

/* Is there room for this many more bytes?  Files only; for others it is known. */
int output_check_space(const struct output *o, uint64_t bytes, struct error **errp);

/* Get the sink ready.  A kept chain has one layer's at a time: each takes memory. */
int output_begin(struct output *o, struct error **errp);

struct sink *output_sink(struct output *o);	/* borrowed, from begin to finish; or NULL */

int output_finish(struct output *o, struct error **errp);

/* After finish: a sink that can be read from is there again.  *ret_how tells people
 * whether the cache was bypassed. */
int output_reopen(struct output *o, const char **ret_how, struct error **errp);
/* Let go of what reading takes. */
void output_close(struct output *o);

int output_publish(struct output *o, struct error **errp);

/* A file that was not published is gone, unless it is partial. */
void output_free(struct output *o);	/* takes NULL */

#endif
