/* SPDX-License-Identifier: Apache-2.0 */
/* block/root.h - an outside user's claim on a node: an export, a side of a job.
 *
 * All I/O enters the graph through a root.  A root counts its requests in
 * flight per loop, so counting shares no cache line.  Before the graph changes,
 * the roots above the nodes concerned are stopped: new requests wait in
 * root_enter(), those in flight are waited for.
 *
 * Context    root_new/root_free/root_set_* : coroutine on loop 0.
 *            root_enter/root_leave: coroutine on any loop (io_* do it themselves).
 */
#ifndef BLOCK_ROOT_H
#define BLOCK_ROOT_H

#include <stdbool.h>
#include <stdint.h>

#include "block/perm.h"

struct error;
struct node;
struct root;
struct use;		/* block/driver.h */

struct root_ops {
	/* The text behind "required by"/"used by" in permission conflicts, e.g.
	 * "block device 'x'" or "export 'e0'"; malloc'ed, NULL on no memory. */
	char *(*describe)(void *user);
	/* A side of a job: its node is told to be busy (node_set_busy()) rather
	 * than in use. */
	bool is_job;
	/* Loop 0; the node's size changed.  Optional. */
	void (*resized)(void *user, uint64_t size);
	/* Loop 0; no new requests are let in from now / again.  Optional. */
	void (*stopped)(void *user);
	void (*resumed)(void *user);
};

/* Claim n.  name is the edge's name in messages (QEMU's: "root").  On failure
 * nothing is claimed and *errp says who conflicts with whom. */
int root_new(struct node *n, const char *name, perm_set perm, perm_set shared,
	     const struct root_ops *ops, void *user, struct root **ret_root,
	     struct error **errp);
/* Waits for the root's requests, then lets go of the node.  Takes NULL. */
void root_free(struct root *r);

struct node *root_node(const struct root *r);	/* changes when the graph does */
int root_set_perm(struct root *r, perm_set perm, perm_set shared, struct error **errp);

/* Make every later request fail with -ESHUTDOWN and every waiting one wake so. */
void root_shutdown(struct root *r);

/* Requests bracket themselves with these.  0, or -ESHUTDOWN. */
int root_enter(struct root *r);
void root_leave(struct root *r);

/* ---- for block/change.c; loop 0 ---- */

/* Let no new request in; nests.  Then wait until none is in flight: coroutine.
 * A root that waits for itself would wait for ever: not within a request. */
void root_stop(struct root *r);
void root_wait_idle(struct root *r);
void root_resume(struct root *r);
/* Only while r is stopped; references are the caller's affair. */
void root_point(struct root *r, struct node *n);

struct root *root_of_use(struct use *u);
/* "block device 'x'", ...: ops->describe, or QEMU's "an unnamed block device";
 * malloc'ed, NULL on no memory. */
char *root_describe(const struct root *r);
bool root_is_job(const struct root *r);
void root_resized(struct root *r, uint64_t size);

#endif
