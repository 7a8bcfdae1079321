/* SPDX-License-Identifier: Apache-2.0 */
#include "export/export.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "aio/co.h"
#include "aio/colock.h"
#include "aio/loop.h"
#include "aio/timer.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/id.h"
#include "block/node.h"
#include "block/perm.h"
#include "block/root.h"
#include "export/nbd/export.h"
#include "schema/types.h"

/* How long deleting waits for requests that do not end. */
enum { GONE_LIMIT_SECONDS = 3 };
enum { BURY_RETRY_NS = 100 * 1000 * 1000 };

static const struct export_kind *const kinds[] = { &nbd_export_kind };

static struct list exports = LIST_INIT(exports);
static struct co_queue gone;	/* woken when an export has gone */
static uint64_t last_serial;
static const struct export_hooks *hooks;

/* Which state may follow on which. */
static const bool moves[EXPORT_STATES][EXPORT_STATES] = {
	[EXPORT_ALIVE][EXPORT_SHUTTING_DOWN] = true,
};

static void
move(struct export *e, enum export_state to)
{
	assert(moves[e->state][to]);
	e->state = to;
}

void
export_set_hooks(const struct export_hooks *h)
{
	hooks = h;
}

const struct export_hooks *
export_hooks(void)
{
	return hooks;
}

struct export *
export_find(const char *id)
{
	struct export *e;

	LIST_FOREACH(e, &exports, link)
		if (!strcmp(e->id, id))
			return e;
	return NULL;
}

static struct export *
find_serial(uint64_t serial)
{
	struct export *e;

	LIST_FOREACH(e, &exports, link)
		if (e->serial == serial)
			return e;
	return NULL;
}

/* ---- the end ---- */

/* What all kinds have, as far as it is there. */
static void
discard(struct export *e)
{
	root_free(e->root);
	if (e->loop)
		hooks->release_iothread(e->loop);
	free(e->id);
	free(e);
}

/* Coroutine: giving nodes back may wait.  All that while the export can be seen,
 * with its root. */
static void
bury(void *arg)
{
	struct export *e = arg;

	e->kind->destroy(e);
	root_free(e->root);
	e->root = NULL;
	list_remove(&e->link);
	if (hooks)
		hooks->on_deleted(e->id);
	discard(e);
	co_queue_wake_all(&gone);
}

static void
start_bury(struct timer *t)
{
	struct export *e = CONTAINER_OF(t, struct export, again);

	if (co_spawn(loop_main(), bury, e) < 0)
		timer_set(t, clock_ns() + BURY_RETRY_NS);
}

void
export_ref(struct export *e)
{
	e->refs++;
}

void
export_unref(struct export *e)
{
	assert(e->refs);
	if (--e->refs)
		return;
	assert(e->state == EXPORT_SHUTTING_DOWN);
	e->again.fn = start_bury;
	start_bury(&e->again);
}

static void
shut_down(struct export *e)
{
	move(e, EXPORT_SHUTTING_DOWN);
	e->kind->shutdown(e);
	root_shutdown(e->root);
	export_unref(e);
}

/* Wait for an export, or with serial 0 for all that fit. */
static bool
wait_gone(uint64_t serial, bool (*fits)(const struct export *e), int64_t deadline)
{
	for (;;) {
		bool there = serial && find_serial(serial);
		struct export *e;

		if (!serial)
			LIST_FOREACH(e, &exports, link)
				there = there || !fits || fits(e);
		if (!there)
			return true;
		if (co_queue_timedwait(&gone, NULL, deadline) < 0)
			return false;
	}
}

static bool
del(struct export *e)
{
	uint64_t serial = e->serial;

	shut_down(e);
	return wait_gone(serial, NULL, clock_ns() + GONE_LIMIT_SECONDS * INT64_C(1000000000));
}

int
export_del(const char *id, bool hard, struct error **errp)
{
	struct export *e = export_find(id);

	if (!e)
		return error_set(errp, "Export '%s' is not found", id);
	if (e->state == EXPORT_SHUTTING_DOWN)
		return error_set(errp, "Export '%s' is already shutting down", id);
	if (!hard && e->refs > 1)
		return error_set(errp, "export '%s' still in use", id);
	del(e);
	return 0;
}

bool
export_del_newest(bool (*fits)(const struct export *e))
{
	struct export *e;

	LIST_FOREACH(e, &exports, link) {
		if (e->state == EXPORT_ALIVE && fits(e))
			return del(e);
	}
	return false;
}

bool
export_close_all(bool (*fits)(const struct export *e), int64_t deadline_ns)
{
	struct export *e, *next;

	LIST_FOREACH_SAFE(e, next, &exports, link)
		if ((!fits || fits(e)) && e->state == EXPORT_ALIVE)
			shut_down(e);
	return wait_gone(0, fits, deadline_ns);
}

/* ---- the beginning ---- */

static const struct export_kind *
find_kind(int type)
{
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (kinds[i]->type == type)
			return kinds[i];
	return NULL;
}

/* Everything that can be wrong before anything is made. */
static int
check(const struct BlockExportOptions *opts, const struct export_kind **ret_kind,
      struct node **ret_node, struct error **errp)
{
	const struct export_kind *kind = find_kind((int)opts->type);
	struct node *n;

	if (!id_is_well_formed(opts->id))
		return error_set(errp, "Invalid block export id");
	if (export_find(opts->id))
		return error_set(errp, "Block export id '%s' is already in use", opts->id);
	if (!kind)
		return error_set(errp, "No driver found for the requested export type");
	n = node_lookup(opts->node_name, errp);
	if (!n)
		return -1;
	if (opts->writable && node_is_read_only(n))
		return error_set(errp, "Cannot export read-only node as writable");
	*ret_kind = kind;
	*ret_node = n;
	return 0;
}

int
export_add(const struct BlockExportOptions *opts, struct error **errp)
{
	static const struct root_ops ops = { 0 };
	const struct export_kind *kind = NULL;
	perm_set perm = PERM_CONSISTENT_READ;
	struct node *n = NULL;
	struct export *e;

	if (check(opts, &kind, &n, errp) < 0)
		return -1;
	e = calloc(1, kind->size);
	if (!e || !(e->id = strdup(opts->id))) {
		free(e);
		return error_set(errp, "Out of memory");
	}
	e->kind = kind;
	e->refs = 1;
	e->serial = ++last_serial;
	e->writable = opts->writable;
	e->writethrough = opts->writethrough;
	if (e->writable)
		perm |= PERM_WRITE;
	/* fixed-iothread asks that the work stays there: it always does. */
	if (opts->iothread && !(e->loop = hooks->take_iothread(opts->iothread, errp)))
		goto fail;
	/* A client was told the size: it stays while the export is there. */
	if (root_new(n, "root", perm, PERM_ALL & ~(perm_set)PERM_RESIZE, &ops, e, &e->root, errp) < 0)
		goto fail;
	/* The claim may have waited: the id may be another's by now. */
	if (export_find(opts->id)) {
		error_set(errp, "Block export id '%s' is already in use", opts->id);
		goto fail;
	}
	if (kind->create(e, opts, errp) < 0)
		goto fail;
	list_push(&exports, &e->link);
	return 0;

fail:
	discard(e);
	return -1;
}

/* ---- looking ---- */

static int
query_one(const struct export *e, struct BlockExportInfoList *list)
{
	struct BlockExportInfo *info = calloc(1, sizeof(*info));

	if (!info)
		return -ENOMEM;
	info->id = strdup(e->id);
	info->type = (enum BlockExportType)e->kind->type;
	info->node_name = strdup(node_name(root_node(e->root)));
	info->shutting_down = e->state == EXPORT_SHUTTING_DOWN;
	/* Without references its kind has nothing left to tell. */
	if (e->kind->query && e->refs && e->kind->query(e, info) < 0)
		goto fail;
	if (info->id && info->node_name && BlockExportInfoList_add(list, info) == 0)
		return 0;

fail:
	BlockExportInfo_free(info);
	return -ENOMEM;
}

int
export_query(struct BlockExportInfoList **ret_list, struct error **errp)
{
	CLEANUP(BlockExportInfoList_freep) struct BlockExportInfoList *list = calloc(1, sizeof(*list));
	struct export *e;

	if (!list)
		return error_set(errp, "Out of memory");
	LIST_FOREACH(e, &exports, link)
		if (query_one(e, list) < 0)
			return error_set(errp, "Out of memory");
	*ret_list = STEAL(list);
	return 0;
}
