/* SPDX-License-Identifier: Apache-2.0 */
#include "job/commit_plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/node.h"
#include "block/root.h"
#include "schema/types.h"

/* ---- walking the chain ---- */

static bool
same_file(const char *a, const char *b)
{
	CLEANUP(cleanup_free) char *real_a = NULL, *real_b = NULL;

	if (!strcmp(a, b))
		return true;
	real_a = realpath(a, NULL);
	real_b = realpath(b, NULL);
	return real_a && real_b && !strcmp(real_a, real_b);
}

/* The layer below n whose image is that file. */
static struct node *
find_image(struct node *n, const char *file)
{
	for (n = node_backing_skip(n); n; n = node_backing_skip(n))
		if (same_file(node_filename(n), file))
			return n;
	return NULL;
}

static struct node *
lowest(struct node *n)
{
	struct node *next;

	while ((next = node_backing_skip(n)))
		n = next;
	return n;
}

/* Something other than a client stands above n: a node, or a job. */
static bool
has_parents(const struct node *n)
{
	struct use *u;

	LIST_FOREACH(u, &n->users, link)
		if (!u->is_root || root_is_job(root_of_use(u)))
			return true;
	return false;
}

/* ---- the arguments ---- */

static int
find_device(const char *name, struct node **ret, struct error **errp)
{
	struct node *n = node_find(name);

	if (!n)
		return error_set_class(errp, ERROR_DEVICE_NOT_FOUND,
				       "Device '%s' not found", name);
	if (has_parents(n))
		return error_set(errp, "Need a root block node");
	*ret = n;
	return 0;
}

static int
find_in_chain(struct node *from, const char *name, struct node **ret, struct error **errp)
{
	struct node *n = node_lookup(name, errp);

	if (!n)
		return -1;
	if (!node_chain_contains(from, n))
		return error_set(errp, "'%s' is not in this backing file chain", name);
	*ret = n;
	return 0;
}

static int
find_top(const struct block_commit_args *a, struct commit_plan *p, struct error **errp)
{
	p->top = p->device;
	if (a->top_node && a->top)
		return error_set(errp, "'top-node' and 'top' are mutually exclusive");
	if (a->top_node)
		return find_in_chain(p->device, a->top_node, &p->top, errp);
	if (a->top && strcmp(node_filename(p->device), a->top) != 0)
		p->top = find_image(p->device, a->top);
	if (!p->top)
		return error_set(errp, "Top image file %s not found", a->top);
	return 0;
}

static int
find_base(const struct block_commit_args *a, struct commit_plan *p, struct error **errp)
{
	if (a->base_node && a->base)
		return error_set(errp, "'base-node' and 'base' are mutually exclusive");
	if (a->base_node)
		return find_in_chain(p->top, a->base_node, &p->base, errp);
	p->base = a->base ? find_image(p->top, a->base) : lowest(p->top);
	if (!p->base)
		return error_set(errp, "Can't find '%s' in the backing chain", a->base);
	return 0;
}

static int
check_chain(const struct commit_plan *p, struct error **errp)
{
	for (struct node *n = p->top; n; n = n == p->base ? NULL : node_below(n))
		if (node_check_busy(n, errp) < 0)
			return -1;
	if (p->top == p->base)
		return error_set(errp, "cannot commit an image into itself");
	if (node_skip_filters(p->top) == node_skip_filters(p->base))
		return error_set(errp, "Invalid files for merge: top and base are the same");
	return 0;
}

int
commit_plan_make(const struct block_commit_args *a, struct commit_plan *p,
		 struct error **errp)
{
	bool is_device;

	*p = (struct commit_plan){ 0 };
	if (find_device(a->device, &p->device, errp) < 0 || find_top(a, p, errp) < 0 ||
	    find_base(a, p, errp) < 0 || check_chain(p, errp) < 0)
		return -1;
	is_device = node_skip_filters(p->top) == node_skip_filters(p->device);
	p->active = is_device || p->top->perm & PERM_WRITE;
	if (p->active && a->backing_file)
		return error_set(errp, "'backing-file' specified, but 'top' %s",
				 is_device ? "is the active layer"
					   : "has a writer on it");
	return 0;
}
