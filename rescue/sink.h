/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/sink.h - where a copy goes: an image, a device, an NBD server, a stream.
 *
 * Units      bytes.
 * Context    sink_*_new() and sink_free(): coroutine on loop 0.  The rest:
 *            coroutine, any loop, several at once; but a sink that takes its
 *            data in order is written by one at a time, from 0 to the end.
 * Ownership  buffers are borrowed until the call returns.
 * Errors     0 or -errno; sink_*_new(): 0 or -1 with *errp.
 */
#ifndef RESCUE_SINK_H
#define RESCUE_SINK_H

#include <stdbool.h>
#include <stdint.h>

struct error;
struct extent;
struct iov;
struct node;
struct sink;

struct sink_ops {
	int (*write)(struct sink *s, uint64_t off, const struct iov *src);
	int (*zero)(struct sink *s, uint64_t off, uint64_t len);
	int (*read)(struct sink *s, uint64_t off, const struct iov *dst);	/* NULL: it is gone */
	/* What stands at off, as node_status() has it.  NULL: data everywhere. */
	int (*status)(struct sink *s, uint64_t off, uint64_t len, struct extent *ret);
	/* All that was written is on stable storage. */
	int (*flush)(struct sink *s);
	/* Flush nothing; what closing could not store is returned. */
	int (*free)(struct sink *s);
};

struct sink {
	const struct sink_ops *ops;
	uint32_t grain;		/* zeroes are told from data in multiples of this */
	bool in_order;
};

/* A node, with a reference of the sink's own.  read_only: to compare with. */
struct sink_node_options {
	uint32_t grain;
	bool read_only;
	bool compress;		/* grains are written compressed; grain is the cluster */
	int file;		/* behind it, so that its disk can begin early; -1: none */
};
int sink_node_new(struct node *n, const struct sink_node_options *o, struct sink **ret,
		  struct error **errp);

/* What is at the other end of these may keep us waiting for ever.  Once the descriptor stop
 * can be read from, no call waits any longer: what is not done is -ECANCELED, and the sink
 * is good for nothing but sink_free().  Borrowed, as fd is. */

/* A pipe, or whatever else fd is: data in order, zeroes too. */
int sink_stream_new(int fd, int stop, struct sink **ret, struct error **errp);

/* The export that an NBD URI names, of at least this size. */
int sink_nbd_new(const char *uri, uint64_t size, int stop, struct sink **ret,
		 struct error **errp);
bool sink_nbd_is_uri(const char *name);

int sink_free(struct sink *s);	/* takes NULL; 0 or -errno, as ops->free */

#endif
