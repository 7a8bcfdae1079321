/* SPDX-License-Identifier: Apache-2.0 */
/* block/driver.h - what a driver is: the contract between io.c/graph.c and drivers.
 *
 * Drivers see only aligned, in-range, bounded requests: io.c checks, splits,
 * pads and emulates.  A driver is a small required table of functions plus
 * small optional ones, and declares its capabilities as data.
 *
 * Units      bytes.
 * Context    open, close, reopen, perms and info: coroutine on loop 0, with no
 *            request of a root in flight in close and reopen.  I/O: coroutine,
 *            any loop, any number at once; a driver guards its own state.
 * Errors     I/O: 0 or -errno.  open and kin: 0 or -1 with *errp.
 */
#ifndef BLOCK_DRIVER_H
#define BLOCK_DRIVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "aio/colock.h"
#include "base/list.h"
#include "block/dirty.h"
#include "block/io.h"
#include "block/node.h"
#include "block/perm.h"

struct BlockdevCreateOptions;
struct BlockdevOptions;
struct BlockdevRef;
struct ImageInfo;
struct ImageInfoSpecific;
struct check_report;
struct check_result;
struct iov;
struct open_policy;
struct opener;		/* one node_open() under way: policy, refusals, depth */
struct snapshot_ops;	/* block/snapshot.h */
struct ranges;		/* block/ranges.h: requests that must not overlap */

/* Multiples and maxima that a driver's requests keep to; 0 in a maximum: none. */
struct limits {
	uint32_t align;		/* of off and len of reads and writes; >= 1, a power of two */
	uint32_t mem_align;	/* of the buffers' addresses and pieces; >= 1 */
	uint64_t max_transfer;	/* bytes of a read or write */
	uint64_t opt_transfer;
	uint32_t zero_align;	/* of driver->zero; a request's rest comes apart from it */
	uint64_t max_zero;
	uint32_t discard_align;	/* a discard's unaligned rest is dropped, but at the end */
	uint64_t max_discard;
};

/* Dirty bitmaps that an image stores.  Coroutine on loop 0. */
struct bitmap_ops {
	/* Could it store one of that kind? */
	int (*check)(struct node *n, const char *name, uint64_t granularity,
		     struct error **errp);
	/* See to it that b, which is new, can be stored when the node is closed. */
	int (*add)(struct node *n, struct dirty_bitmap *b, struct error **errp);
	/* Take b out of the image. */
	int (*remove)(struct node *n, struct dirty_bitmap *b, struct error **errp);
	/* Make the image say that what it knows of its bitmaps is out of date.  0 or
	 * -errno. */
	int (*touch)(struct node *n);
};

/* What a node keeps of an earlier instant, beside what it shows (the driver
 * snapshot-access reads it).  Coroutine, any loop.  -EACCES: that is not known, or no
 * longer. */
struct instant_ops {
	int (*read)(struct node *n, uint64_t off, const struct iov *dst);
	int (*status)(struct node *n, uint64_t off, uint64_t len, bool want_zero,
		      struct extent *ret_extent);
	/* It will not be read any more. */
	int (*discard)(struct node *n, uint64_t off, uint64_t len);
};

enum driver_cap {
	DRIVER_FILTER	     = 1 << 0,	/* shows its filtered child's content */
	DRIVER_PROTOCOL	     = 1 << 1,	/* a leaf: has storage of its own */
	DRIVER_BACKING	     = 1 << 2,	/* can have a COW child */
	DRIVER_GROWS	     = 1 << 3,	/* writes beyond the end make it larger */
	DRIVER_FUA	     = 1 << 4,	/* write and zero take IO_FUA */
	DRIVER_ZERO_UNMAP    = 1 << 5,	/* zero takes IO_MAY_UNMAP */
	DRIVER_ZERO_FAST     = 1 << 6,	/* zero takes IO_FAST */
	DRIVER_COMPRESSED    = 1 << 7,	/* write takes IO_COMPRESSED */
	DRIVER_MERGES	     = 1 << 8,	/* a filter that writes to a layer below what it
					 * filters, and so that no layer between can tell */
	DRIVER_CHILDS_NAME   = 1 << 9,	/* its file name is said to be that of its file */
};

struct driver {
	const char *name;		/* as in BlockdevDriver */
	unsigned caps;			/* enum driver_cap */
	size_t state_size;		/* node->state: zeroed memory of this size */

	/* Open n (named, options set, state zeroed).  Children are opened by
	 * opener_child(); on failure they are let go of by the caller, but what
	 * the driver itself acquired it releases.  Sets n->limits and n->size. */
	int (*open)(struct node *n, struct opener *op, struct error **errp);
	/* Flush and release; also called for a node whose open succeeded but whose
	 * tree was refused.  0, or -errno of what could not be stored (said in a
	 * log line and the exit status by the caller); released all the same. */
	int (*close)(struct node *n);

	int (*read)(struct node *n, uint64_t off, const struct iov *dst);
	int (*write)(struct node *n, uint64_t off, const struct iov *src, unsigned flags);
	/* -EOPNOTSUPP: io.c writes zeroes instead (or gives up, with IO_FAST).  A
	 * request is a multiple of zero_align, or lies between two multiples. */
	int (*zero)(struct node *n, uint64_t off, uint64_t len, unsigned flags);
	int (*discard)(struct node *n, uint64_t off, uint64_t len);
	/* Format: write back own caches in order.  io.c then flushes the children. */
	int (*flush)(struct node *n);
	/* One extent of this layer at off, at most len.  NULL: all is data of this
	 * layer (a filter: ask the child). */
	int (*status)(struct node *n, uint64_t off, uint64_t len, bool want_zero,
		      struct extent *ret_extent);
	int (*truncate)(struct node *n, uint64_t size, bool exact, enum prealloc prealloc,
			struct error **errp);

	/* What this node needs on a child and grants there, given what is asked of
	 * itself.  NULL: the default for filters and formats by role. */
	void (*child_perm)(struct node *n, struct edge *e, unsigned role, perm_set perm,
			   perm_set shared, perm_set *ret_perm, perm_set *ret_shared);
	/* The sums of all users changed: take or drop file locks, reopen the fd for
	 * writing (auto-read-only).  prepare may fail; then exactly one of commit
	 * and abort follows. Optional. */
	int (*perm_prepare)(struct node *n, perm_set perm, perm_set shared, struct error **errp);
	void (*perm_commit)(struct node *n, perm_set perm, perm_set shared);
	void (*perm_abort)(struct node *n);

	/* Switch between read-only and read-write (header fields such as dirty bits
	 * or autoclear flags change here).  A format writes what it has to while the
	 * node is writable: so it hears of the end before, of the start after the node's
	 * flag changes.  Optional. */
	int (*set_read_only)(struct node *n, bool read_only, struct error **errp);
	/* Write the backing file's name and format into the header. Optional. */
	int (*change_backing)(struct node *n, const char *file, const char *fmt,
			      struct error **errp);
	/* Images hold internal snapshots (block/snapshot.h). Optional. */
	const struct snapshot_ops *snapshots;
	/* Fill the driver's part of ImageInfo: cluster_size, dirty_flag, backing
	 * names, format_specific, snapshots. Optional; that of a filter is then
	 * node_info_above() its child. */
	int (*info)(struct node *n, struct ImageInfo *info, struct error **errp);
	/* blockdev-create: make what opts describe (a file; a format into the node
	 * that opts name).  Atomic where the driver makes a file: on failure it is gone
	 * again.  Coroutine; optional. */
	int (*create)(const struct BlockdevCreateOptions *opts, struct error **errp);
	/* Judge the metadata, and repair it (block/check.h). Optional. */
	int (*check)(struct node *n, unsigned fix, const struct check_report *report,
		     struct check_result *ret);
	/* Requests in flight may wait for a peer that is silent, for ever: if it owes an
	 * answer for silent_ns, have them fail.  The node stays usable.  Coroutine on
	 * loop 0, with requests in flight; optional. */
	void (*give_up)(struct node *n, int64_t silent_ns);
	/* Bytes occupied on the host. Optional; -errno or 0. */
	int (*allocated_size)(struct node *n, uint64_t *ret_bytes);
	const struct bitmap_ops *bitmaps;	/* NULL: it stores none */
	const struct instant_ops *instant;	/* NULL: it keeps nothing */
};

/* What edges and roots have in common: a claim on a node.  Newest first in the
 * node's list, because conflicts are reported in that order. */
struct use {
	struct list link;		/* node->users */
	const char *name;		/* "file", "backing", ...; of a root "root" */
	perm_set perm, shared;
	bool is_root;			/* else within a struct edge */
};

/* An edge: parent uses child under a name, in a role, with permissions.  Edges
 * of a node change only while the roots above it are stopped, so that requests
 * may follow them freely. */
struct edge {
	struct use use;
	struct list in_parent;		/* parent->edges, in order of making */
	struct node *parent, *child;
	unsigned role;			/* enum edge_role */
};

struct node {
	/* Hot: read by every request; changed only while the roots above are
	 * stopped, but for the atomics. */
	const struct driver *driver;
	void *state;
	struct edge *file, *backing;	/* shortcuts into edges; NULL: none */
	_Atomic uint64_t size;
	struct limits limits;
	bool read_only;
	bool tracked;			/* every request goes through serial */
	bool detect_zeroes, detect_zeroes_unmap;
	bool discard_unmap;		/* option discard=unmap */
	bool no_flush;			/* option cache.no-flush */
	_Atomic bool dirty;		/* something changed since the last flush began */
	_Atomic bool flushing;
	_Atomic int flush_error;	/* sticky -errno of a failed flush */
	struct ranges *serial;		/* NULL: no two requests ever collide */
	struct dirty_set bitmaps;
	struct co_mutex flush_lock;

	/* Cold: loop 0 only. */
	char name[NODE_NAME_MAX + 1];
	enum { NODE_OPENING, NODE_OPEN, NODE_CLOSING } life;
	struct BlockdevOptions *options;	/* as opened, own copy; NULL: none */
	void *open_arg;			/* of node_open_driver() */
	char *filename;			/* protocol: its path; format: its file's */
	bool auto_read_only, direct, implicit, force_share;
	bool turning;			/* read_only is being changed: not committed yet */
	bool inherits;			/* opened inline: follows its parent's read-only */
	unsigned refs;
	unsigned pins;			/* besides: somebody just looks */
	struct co_queue unpinned;
	unsigned mark;			/* scratch of graph walks */
	bool opened;			/* driver->open succeeded: close is due */
	bool monitor_owned;
	struct list edges;		/* of struct edge, to children */
	struct list users;		/* of struct use: parents' edges, and roots */
	struct list busy;
	struct list in_all;		/* every node, in order of creation */
	perm_set perm, shared;		/* the sums over users */
};

/* A node's children by other names than n->file and n->backing; NULL: none. */
struct edge *edge_find(const struct node *n, const char *name);

/* Note that [0, end) exists now: a driver whose writes made its node larger. */
void node_grew(struct node *n, uint64_t end);

/* ---- for open ---- */

/* Open or reference the child that ref names, and attach it by an edge.
 * The child is opened first (coroutine, may wait). */
int opener_child(struct opener *op, struct node *n, const struct BlockdevRef *ref,
		 const char *edge_name, unsigned role, struct edge **ret_edge,
		 struct error **errp);
/* What the option "backing" says: *ret_edge is NULL where it says null. */
struct BlockdevRefOrNull;
int opener_backing(struct opener *op, struct node *n, const struct BlockdevRefOrNull *ref,
		   struct edge **ret_edge, struct error **errp);
/* The backing file that the image's header names: relative to the image's folder,
 * literal, format stated (NULL fmt: refused or raw as QEMU documents), confined by
 * the policy. */
int opener_backing_named(struct opener *op, struct node *n, const char *file,
			 const char *fmt, struct edge **ret_edge, struct error **errp);
/* The data file that the image's header names, literally and as a plain file.  It
 * could be any file of the host, so only folders that the policy names will do. */
int opener_data_named(struct opener *op, struct node *n, const char *file,
		      struct edge **ret_edge, struct error **errp);
const struct open_policy *opener_policy(const struct opener *op);
int opener_depth(const struct opener *op);
/* Record that n is encrypted and go on: returns 0 and sets *ret_key where the policy
 * has a decryptor that unlocks it; else the whole node_open() will be refused in the
 * end, whatever the driver returns; the driver returns 0 with reads failing -EACCES,
 * so that the rest of the chain is seen too. */
struct crypt_layer;
int opener_encrypted(struct opener *op, struct node *n, const struct crypt_layer *layer,
		     void **ret_key, struct error **errp);

/* ---- nodes without options: filters that a job makes, disks of tests ---- */

/* A node of this driver under a name (NULL: one is made up), with one reference;
 * driver->open finds arg in n->open_arg, and n->options is NULL.  Coroutine. */
int node_open_driver(const struct driver *driver, const char *name, void *arg,
		     bool read_only, struct node **ret_node, struct error **errp);
/* In driver->open, instead of opener_child(): use an open node as a child. */
int node_attach(struct node *n, struct node *child, const char *edge_name, unsigned role,
		struct edge **ret_edge, struct error **errp);

/* For an info function: the part of what n's says that holds for a node over n which
 * shows the same, too: cluster size and dirty flag.  0 or -1. */
int node_info_above(struct node *n, struct ImageInfo *info, struct error **errp);

/* The table of all drivers (block/drivers.c). */
const struct driver *driver_find(const char *name);

#endif
