/* SPDX-License-Identifier: Apache-2.0 */
/* block/node.h - the graph of block nodes, seen from outside.
 *
 * A node is an opened driver: a file, a format over a file, a filter.  Nodes
 * point at their children by named edges ("file", "backing", "data-file",
 * "target").  What uses a node from outside the graph holds a root (block/root.h).
 * A node lives as long as somebody holds it: a parent's edge, a root, the
 * monitor (who added it by blockdev-add), or a node_ref().
 *
 * Context    loop 0, in a coroutine where it says so; a node's pointers are
 *            stable while one holds a reference.  I/O is in block/io.h.
 * Ownership  node_find() and the walkers return borrowed nodes.
 * Errors     0 or -1 with *errp set (text for the client), QEMU's to the letter.
 */
#ifndef BLOCK_NODE_H
#define BLOCK_NODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/perm.h"

struct BlockdevOptions;		/* generated, schema/ */
struct BlockdevRef;
struct BlockDeviceInfo;
struct BlockDeviceInfoList;
struct edge;
struct error;
struct node;
struct open_policy;		/* block/open.h */

enum { NODE_NAME_MAX = 31 };	/* bytes without the NUL, as in QEMU */

/* ---- life ---- */

/* Open what opts describe, with its whole tree below, and give the caller a
 * reference.  Atomic: on failure nothing is left open, locked or named.
 * Opens first, then enters the graph in one change.  Coroutine; may wait for
 * disks, during which other commands run: the node's name is reserved meanwhile.
 * Encrypted layers anywhere below are refused (block/open.h). */
int node_open(const struct BlockdevOptions *opts, const struct open_policy *policy,
	      struct node **ret_node, struct error **errp);

/* The same, or a reference to the node that ref names; a definition needs no name
 * here. */
int node_open_ref(const struct BlockdevRef *ref, const struct open_policy *policy,
		  struct node **ret_node, struct error **errp);

struct node *node_ref(struct node *n);
/* Coroutine: the last one closes the node (flushes, unlocks) and its children. */
void node_unref(struct node *n);
void node_unrefp(struct node **n);	/* for CLEANUP */

/* Keep n, which has references, to look at it across a wait.  It does not count as
 * used for that, but whoever drops the last reference waits for the end of it. */
struct node *node_pin(struct node *n);
void node_unpin(struct node *n);	/* takes NULL */

/* The monitor's claim, as blockdev-add makes and blockdev-del drops it. */
int node_add(const struct BlockdevOptions *opts, const struct open_policy *policy,
	     struct error **errp);
int node_del(const char *name, struct error **errp);

/* Fail the requests that a peer below these nodes holds up, if it has been silent for
 * so long, be they whose they may.  Coroutine. */
void node_give_up(struct node *const *nodes, size_t count, int64_t silent_ns);

/* Do bytes of n lie with a peer, as an NBD server? */
bool node_has_peer(const struct node *n);

/* Close everything that the monitor owns, in reverse order; coroutine. */
void node_close_all(void);
/* And before that, where the peer may be ourselves: what the monitor alone uses and
 * has a peer. */
void node_close_peers(void);

/* Called, where set, when a node is closed that could not store everything; err
 * is a negative errno.  For a log line and the exit status. */
extern void (*node_close_failed)(const char *name, int err);

/* Called on loop 0, where set, when a node's image was found to contradict itself;
 * fatal: nothing more can be done with it. */
struct node_corruption {
	const char *text;
	bool has_place;
	uint64_t off, len;	/* in the image file */
	bool fatal;
};
extern void (*node_corrupted)(const char *name, const struct node_corruption *what);

/* ---- finding and looking ---- */

struct node *node_find(const char *name);	/* NULL: none */
/* As node_find(), with QEMU's text "Cannot find device='' nor node-name='x'" and kin. */
struct node *node_lookup(const char *name, struct error **errp);

const char *node_name(const struct node *n);
const char *node_driver_name(const struct node *n);
/* The image's own path where it has one (the protocol node's), else "". */
const char *node_filename(const struct node *n);
uint64_t node_size(const struct node *n);	/* bytes; any thread */
bool node_is_read_only(const struct node *n);
bool node_is_filter(const struct node *n);
bool node_is_protocol(const struct node *n);

/* Walk: the child on an edge, or NULL. */
struct node *node_file(const struct node *n);
struct node *node_backing(const struct node *n);	/* COW child only */
struct node *node_filtered(const struct node *n);	/* a filter's child */
/* One step down: what n shows where it has nothing of its own. */
struct node *node_below(const struct node *n);
struct node *node_skip_filters(struct node *n);
/* The next layer of a backing chain: skip filters, then COW child (with its filters). */
struct node *node_backing_skip(struct node *n);
/* Is base in the backing chain of top (or top itself)? */
bool node_chain_contains(const struct node *top, const struct node *base);

/* Does another node stand on n, rather than only exports and jobs? */
bool node_is_used_by_node(const struct node *n);

/* query-named-block-nodes; coroutine.  The caller frees. */
int node_query_all(bool flat, struct BlockDeviceInfoList **ret_list, struct error **errp);
int node_query(struct node *n, bool flat, struct BlockDeviceInfo **ret_info,
	       struct error **errp);

/* ---- changing, as commands and jobs need it; all coroutine, all atomic ---- */

/* Put filter (opened, with `on` already its filtered child) between `on` and all
 * of on's other parents and roots. */
int node_insert_above(struct node *on, struct node *filter, struct error **errp);
/* And call now(arg) in the same instant: none of their requests is under way.  Where
 * it fails all is undone. */
int node_insert_above_then(struct node *on, struct node *filter,
			   int (*now)(void *arg, struct error **errp), void *arg,
			   struct error **errp);
/* Let all parents and roots of n use its filtered child instead. */
int node_remove_filter(struct node *n, struct error **errp);
/* Let all parents and roots of from use to instead (commit, mirror). */
int node_replace(struct node *from, struct node *to, struct error **errp);
/* Rewrite only the header's backing file name and format. */
int node_change_backing_file(struct node *n, const char *file, const char *fmt,
			     struct error **errp);
/* The command on that: n is in the chain of top, has a backing file, and is made
 * writable for as long as it takes.  The backing format recorded is that of the node
 * which is there. */
int node_rename_backing_file(struct node *top, struct node *n, const char *file,
			     struct error **errp);
/* Switch between reading and writing, with the node's own file below it. */
int node_set_read_only(struct node *n, bool read_only, struct error **errp);
int node_resize(struct node *n, uint64_t size, struct error **errp);

/* ---- busy marks ("Node 'x' is busy: ...") ---- */

/* While a reason is set, commands that would pull n from under its user fail with
 * "Node 'NAME' is busy: REASON".  The reason string is borrowed until cleared. */
void node_set_busy(struct node *n, const char *reason);
void node_clear_busy(struct node *n, const char *reason);
int node_check_busy(const struct node *n, struct error **errp);
/* Also fails while n is the backing file of an overlay: for deleting, resizing
 * and replacing; jobs that know the chain use the one above. */
int node_check_free(const struct node *n, struct error **errp);

#endif
