/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/object.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "aio/loop.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/id.h"
#include "base/list.h"
#include "schema/types.h"

struct iothread {
	struct list link;
	char *id;
	struct loop *loop;
	unsigned users;
};

static struct list iothreads = LIST_INIT(iothreads);

static struct iothread *
find(const char *id)
{
	struct iothread *t;

	LIST_FOREACH(t, &iothreads, link)
		if (!strcmp(t->id, id))
			return t;
	return NULL;
}

/* All of these tune QEMU's loops.  Ours tune themselves, so a legal value is taken
 * as the hint that it is; an illegal one is refused as QEMU refuses it. */
static int
check_iothread(const struct IothreadProperties *p, struct error **errp)
{
	const struct {
		const char *name;
		bool has;
		int64_t value;
	} tuning[] = {
		{ "poll-max-ns", p->has_poll_max_ns, p->poll_max_ns },
		{ "poll-grow", p->has_poll_grow, p->poll_grow },
		{ "poll-shrink", p->has_poll_shrink, p->poll_shrink },
		{ "aio-max-batch", p->has_aio_max_batch, p->aio_max_batch },
		{ "thread-pool-min", p->has_thread_pool_min, p->thread_pool_min },
		{ "thread-pool-max", p->has_thread_pool_max, p->thread_pool_max },
	};

	for (size_t i = 0; i < ARRAY_SIZE(tuning); i++)
		if (tuning[i].has && tuning[i].value < 0)
			return error_set(errp, "%s value must be in range [0, %lld]",
					 tuning[i].name, (long long)INT64_MAX);
	return 0;
}

static int
add_iothread(const struct ObjectOptions *opts, struct error **errp)
{
	struct iothread *t;
	int r;

	if (check_iothread(&opts->u.iothread, errp) < 0)
		return -1;
	t = calloc(1, sizeof(*t));
	if (!t || !(t->id = strdup(opts->id))) {
		free(t);
		return error_set(errp, "Cannot allocate memory");
	}
	r = loop_add(opts->id, &t->loop, errp);
	if (r < 0) {
		free(t->id);
		free(t);
		return -1;
	}
	list_append(&iothreads, &t->link);
	return 0;
}

int
object_add(const struct ObjectOptions *opts, struct error **errp)
{
	if (opts->qom_type == OBJECT_TYPE_SECRET)
		return error_set(errp,
				 "Object type 'secret' is not offered: this daemon opens no encrypted"
				 " image and so takes no key; decrypt the image first with:"
				 " quoin rescue SOURCE TARGET");
	if (!id_is_well_formed(opts->id))
		return error_set(errp, "Parameter 'id' expects an identifier");
	if (find(opts->id))
		return error_set(errp,
				 "attempt to add duplicate property '%s' to object"
				 " (type 'container')",
				 opts->id);
	return add_iothread(opts, errp);
}

static void
del(struct iothread *t)
{
	list_remove(&t->link);
	loop_remove(t->loop);
	free(t->id);
	free(t);
}

int
object_del(const char *id, struct error **errp)
{
	struct iothread *t = find(id);

	if (!t)
		return error_set(errp, "object '%s' not found", id);
	if (t->users)
		return error_set(errp, "object '%s' is in use, can not be deleted", id);
	del(t);
	return 0;
}

struct loop *
object_take_iothread(const char *id, struct error **errp)
{
	struct iothread *t = find(id);

	if (!t) {
		error_set(errp, "iothread \"%s\" not found", id);
		return NULL;
	}
	t->users++;
	return t->loop;
}

void
object_release_iothread(struct loop *l)
{
	struct iothread *t;

	LIST_FOREACH(t, &iothreads, link)
		if (t->loop == l)
			t->users--;
}

void
object_del_all(void)
{
	struct iothread *t, *tmp;

	LIST_FOREACH_SAFE(t, tmp, &iothreads, link)
		del(t);
}
