/* SPDX-License-Identifier: Apache-2.0 */
/* export/export.h - the life cycle that all kinds of exports share.
 *
 * An export shows a node to clients outside of the process.  It holds the node
 * by a root, has an id, and is referenced by its user (from add to delete) and
 * by each client that it serves.  Deleting it takes the user's reference back
 * and asks the kind to let its clients go; with the last reference it ends,
 * and on_deleted is told.
 *
 *	add -> ALIVE --delete--> SHUTTING_DOWN --last reference--> gone
 *
 * Context    loop 0; calls with an errp: coroutine.
 * Errors     0 or -1 with *errp.
 */
#ifndef EXPORT_EXPORT_H
#define EXPORT_EXPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "aio/timer.h"
#include "base/list.h"

struct BlockExportInfo;
struct BlockExportInfoList;
struct BlockExportOptions;
struct error;
struct export;
struct loop;
struct root;
struct tls_creds;

/* A kind of export, as the kind's code fills it in. */
struct export_kind {
	int type;		/* enum BlockExportType */
	size_t size;		/* of its struct, which begins with a struct export */
	/* e is ready but for what the kind adds; on failure nothing of that is left. */
	int (*create)(struct export *e, const struct BlockExportOptions *opts,
		      struct error **errp);
	/* Let clients go, and take in no more.  May be called while some still are. */
	void (*shutdown)(struct export *e);
	/* Nobody refers to e any more; the caller releases the root and the memory. */
	void (*destroy)(struct export *e);
	/* Add what only this kind tells: 0 or -ENOMEM.  Optional. */
	int (*query)(const struct export *e, struct BlockExportInfo *info);
};

enum export_state { EXPORT_ALIVE, EXPORT_SHUTTING_DOWN, EXPORT_STATES };

struct export {
	const struct export_kind *kind;
	struct list link;	/* all exports, the newest first */
	char *id;
	uint64_t serial;	/* never used twice */
	enum export_state state;
	unsigned refs;
	struct root *root;
	struct loop *loop;	/* the one asked for, or NULL */
	bool writable, writethrough;
	struct timer again;	/* where there was no memory for its end */
};

/* What the daemon adds. */
struct export_hooks {
	void (*on_deleted)(const char *id);	/* BLOCK_EXPORT_DELETED */
	/* Hold the loop of an iothread, as long as its export lives.  NULL and
	 * *errp if there is none of this id. */
	struct loop *(*take_iothread)(const char *id, struct error **errp);
	void (*release_iothread)(struct loop *l);
	/* A reference to the TLS credentials of this id, NULL and *errp if there are
	 * none. */
	struct tls_creds *(*take_tls_creds)(const char *id, struct error **errp);
	/* Does the authorization object of this id let in whom TLS has shown to be
	 * identity (NULL: nobody knows)?  Not if there is none of this id. */
	bool (*is_authorized)(const char *id, const char *identity);
	/* The next listening socket that the service manager passed under this name;
	 * the caller's.  -1: there is none. */
	int (*take_socket)(const char *name);
};
void export_set_hooks(const struct export_hooks *hooks);	/* borrowed for ever */
const struct export_hooks *export_hooks(void);			/* for kinds */

int export_add(const struct BlockExportOptions *opts, struct error **errp);

/* hard: clients are thrown out.  Returns when the export is gone, or after some
 * seconds, if a request hangs: it is then shutting down, and will go with it. */
int export_del(const char *id, bool hard, struct error **errp);

/* Delete the newest export that fits in the hard way; false: there is none, or it does
 * not end in time. */
bool export_del_newest(bool (*fits)(const struct export *e));

int export_query(struct BlockExportInfoList **ret_list, struct error **errp);

/* Throw out the clients of all exports that fit (NULL: of any), and wait until all
 * those are gone, or deadline_ns on clock_ns() (false). */
bool export_close_all(bool (*fits)(const struct export *e), int64_t deadline_ns);

struct export *export_find(const char *id);

/* For kinds: a client's reference. */
void export_ref(struct export *e);
void export_unref(struct export *e);

#endif
