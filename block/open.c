/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a tree of nodes, and closing them.
 *
 * A node is made in the state OPENING, which reserves its name and shows it to
 * nobody.  Its driver opens its children by opener_child(), depth first; each
 * child is attached as soon as it is open, so that its file is locked before its
 * parent reads a byte of it.  When the whole tree stands, its nodes become OPEN
 * in one go.  Whatever fails on the way, the half-built tree is let go of from
 * its top and closes itself.
 *
 * Encrypted layers do not fail at once: the list of refusals grows while the
 * rest of the chain is opened, so that one answer names them all. */
#include "block/open.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "aio/co.h"
#include "aio/loop.h"
#include "aio/work.h"
#include "base/bytes.h"
#include "base/error.h"
#include "block/change.h"
#include "block/driver.h"
#include "block/graph.h"
#include "block/node.h"
#include "block/opener.h"
#include "block/ranges.h"
#include "block/root.h"
#include "schema/types.h"

const struct open_policy open_policy_default = { .follow_images = true };

void (*node_close_failed)(const char *name, int err);

/* What a child takes from its parent where its own options say nothing. */
struct inherited {
	bool is_child;
	bool read_only, auto_read_only, direct, no_flush, discard_unmap, force_share;
};

/* ---- options that all drivers share ---- */

static struct inherited
inherit(const struct node *parent, unsigned role)
{
	struct inherited in = {
		.is_child = true,
		.read_only = role & ROLE_COW || parent->read_only,
		.auto_read_only = !(role & ROLE_COW) && parent->auto_read_only,
		.direct = parent->direct,
		.no_flush = parent->no_flush,
		.force_share = parent->force_share,
		/* Formats flush and discard with care; let it through to the file. */
		.discard_unmap = !(role & ROLE_COW) && !node_is_filter(parent),
	};

	return in;
}

static int
set_generic_options(struct node *n, const struct BlockdevOptions *o,
		    const struct inherited *in, struct error **errp)
{
	const struct BlockdevCacheOptions *cache = o->cache;

	n->inherits = in->is_child && !o->has_read_only;
	n->read_only = o->has_read_only ? o->read_only : in->read_only;
	n->auto_read_only = o->has_auto_read_only ? o->auto_read_only
						  : in->auto_read_only;
	n->force_share = o->has_force_share ? o->force_share : in->force_share;
	n->direct = cache && cache->has_direct ? cache->direct : in->direct;
	n->no_flush = cache && cache->has_no_flush ? cache->no_flush : in->no_flush;
	n->discard_unmap = o->has_discard
				   ? o->discard == BLOCKDEV_DISCARD_OPTIONS_UNMAP
				   : in->discard_unmap;
	if (o->has_detect_zeroes) {
		n->detect_zeroes =
			o->detect_zeroes != BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF;
		n->detect_zeroes_unmap =
			o->detect_zeroes == BLOCKDEV_DETECT_ZEROES_OPTIONS_UNMAP;
	}
	if (n->detect_zeroes_unmap && !n->discard_unmap)
		return error_set(errp, "setting detect-zeroes to unmap is not allowed "
				 "without setting discard operation to unmap");
	if (n->force_share && !n->read_only)
		return error_set(errp, "force-share=on can only be used with read-only "
				 "images");
	return 0;
}

/* ---- one node ---- */

static void
no_maxima(struct limits *l)
{
	const uint64_t most = (uint64_t)1 << 62;

	l->align = l->align ? l->align : 1;
	l->mem_align = l->mem_align ? l->mem_align : 1;
	l->zero_align = l->zero_align ? l->zero_align : 1;
	l->discard_align = l->discard_align ? l->discard_align : 1;
	l->max_transfer = l->max_transfer ? round_down(l->max_transfer, l->align) : most;
	l->max_zero = l->max_zero ? l->max_zero : most;
	l->max_discard = l->max_discard ? l->max_discard : most;
}

/* What the request path needs besides what the driver set. */
static int
finish_open(struct node *n, struct error **errp)
{
	struct edge *e;

	no_maxima(&n->limits);
	if (n->limits.align > 1) {
		n->serial = malloc(sizeof(*n->serial));
		if (!n->serial)
			return error_set(errp, "Cannot allocate memory");
		ranges_init(n->serial);
	}
	LIST_FOREACH(e, &n->edges, in_parent) {
		if (n->filename || !(e->role & (ROLE_PRIMARY | ROLE_FILTERED)))
			continue;
		n->filename = strdup(node_filename(e->child));
		if (!n->filename)
			return error_set(errp, "Cannot allocate memory");
	}
	return 0;
}

/* On success *ret_node has one reference, the caller's. */
static int
open_one(struct opener *op, const struct BlockdevOptions *o, const struct inherited *in,
	 struct node **ret_node, struct error **errp)
{
	const char *driver_name = BlockdevDriver_str(o->driver);
	const struct driver *driver = driver_find(driver_name);
	struct node *n;
	int r;

	if (!driver)
		return error_set(errp, "Unknown driver '%s'", driver_name);
	n = graph_node_new(driver, o->node_name, errp);
	if (!n)
		return -1;
	r = set_generic_options(n, o, in, errp);
	n->options = BlockdevOptions_clone(o);
	if (!r && !n->options)
		r = error_set(errp, "Cannot allocate memory");
	if (!r)
		r = driver->open(n, op, errp);
	if (!r) {
		n->opened = true;
		r = finish_open(n, errp);
	}
	if (r < 0) {
		node_unref(n);
		return -1;
	}
	*ret_node = n;
	return 0;
}

/* ---- children ---- */

/* The image that n, still opening, is the format of. */
static const char *
image_name(const struct node *n)
{
	return n->file ? node_filename(n->file->child) : "";
}

struct child_open {
	struct opener *op;
	const struct BlockdevOptions *options;
	struct inherited in;
	struct node **ret_node;
	struct error **errp;
	int result;
};

static void
open_child_entry(void *arg)
{
	struct child_open *c = arg;

	c->result = open_one(c->op, c->options, &c->in, c->ret_node, c->errp);
}

/* Each layer of a chain has a stack of its own: chains are long. */
static int
open_definition(struct opener *op, struct node *parent,
		const struct BlockdevOptions *options, unsigned role,
		struct node **ret_node, struct error **errp)
{
	struct child_open c = { .op = op, .options = options,
				.in = inherit(parent, role), .ret_node = ret_node,
				.errp = errp };
	const char *overlay = op->overlay;
	int deeper = role & ROLE_COW ? 1 : 0, r;

	if (op->depth + deeper > OPENER_DEPTH_MAX)
		return error_set(errp, "The backing chain has more than %d layers",
				 OPENER_DEPTH_MAX);
	op->depth += deeper;
	if (deeper)
		op->overlay = image_name(parent);
	if (deeper && co_self()) {
		r = co_call(loop_self(), open_child_entry, &c);
		if (r < 0)
			c.result = error_set(errp, "Cannot allocate memory");
	} else {
		open_child_entry(&c);
	}
	op->depth -= deeper;
	op->overlay = overlay;
	return c.result;
}

static int
attach(struct node *n, struct node *child, const char *edge_name, unsigned role,
       struct edge **ret_edge, struct error **errp)
{
	struct change c;
	struct edge *e = NULL;
	int r = change_begin(&c, NULL, 0, errp);

	if (!r)
		r = change_add_edge(&c, n, child, edge_name, role, &e, errp);
	if (!r)
		r = change_permit(&c, errp);
	r = change_end(&c, r);
	if (!r && ret_edge)
		*ret_edge = e;
	return r;
}

/* Attach the child that was opened, or found, with one reference. */
static int
adopt(int result, struct node *n, struct node *child, const char *edge_name,
      unsigned role, struct edge **ret_edge, struct error **errp)
{
	if (result < 0) {
		if (role & ROLE_COW)
			error_prepend(errp, "Could not open backing file: ");
		return -1;
	}
	result = attach(n, child, edge_name, role, ret_edge, errp);
	node_unref(child);
	return result;
}

static int
find_reference(const char *name, struct node **ret_node, struct error **errp)
{
	struct node *n = node_find(name);

	if (!n)
		return error_set(errp, "Cannot find device='%s' nor node-name='%s'",
				 name, name);
	*ret_node = node_ref(n);
	return 0;
}

int
opener_child(struct opener *op, struct node *n, const struct BlockdevRef *ref,
	     const char *edge_name, unsigned role, struct edge **ret_edge,
	     struct error **errp)
{
	struct node *child = NULL;
	int r;

	if (ref->type == BLOCKDEV_REF_REFERENCE)
		r = find_reference(ref->u.reference, &child, errp);
	else
		r = open_definition(op, n, &ref->u.definition, role, &child, errp);
	return adopt(r, n, child, edge_name, role, ret_edge, errp);
}

int
opener_backing(struct opener *op, struct node *n, const struct BlockdevRefOrNull *ref,
	       struct edge **ret_edge, struct error **errp)
{
	struct node *child = NULL;
	int r;

	*ret_edge = NULL;
	if (ref->type == BLOCKDEV_REF_OR_NULL_NULL)
		return 0;
	if (ref->type == BLOCKDEV_REF_OR_NULL_REFERENCE)
		r = find_reference(ref->u.reference, &child, errp);
	else
		r = open_definition(op, n, &ref->u.definition, ROLE_COW, &child, errp);
	return adopt(r, n, child, "backing", ROLE_COW, ret_edge, errp);
}

/* ---- what an image's header names ---- */

struct probe {
	const char *path;
	const char *const *dirs;
	bool is_device, is_outside;
};

static bool
lies_within(const char *path, const char *dir)
{
	CLEANUP(cleanup_free) char *real = realpath(dir, NULL);
	size_t len = real ? strlen(real) : 0;

	if (!real || strncmp(path, real, len) != 0)
		return false;
	return len == 1 || path[len] == '/';
}

static int
probe_path(void *arg)
{
	struct probe *p = arg;
	CLEANUP(cleanup_free) char *real = realpath(p->path, NULL);
	struct stat st;

	if (!real || stat(real, &st) < 0)
		return 0;	/* opening it will say what is wrong */
	p->is_device = S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode);
	p->is_outside = p->dirs;
	for (const char *const *d = p->dirs; d && *d; d++)
		if (lies_within(real, *d))
			p->is_outside = false;
	return 0;
}

/* name as the image at overlay means it: relative to the image's folder. */
static char *
resolve(const char *overlay, const char *name, struct error **errp)
{
	const char *slash = strrchr(overlay, '/');
	char *path = NULL;

	if (*name != '/' && !*overlay) {
		error_set(errp, "Cannot use relative backing file names for '%s'",
			  overlay);
		return NULL;
	}
	if (*name == '/' || !slash)
		path = strdup(name);
	else if (asprintf(&path, "%.*s%s", (int)(slash - overlay + 1), overlay, name) < 0)
		path = NULL;
	if (!path)
		error_set(errp, "Cannot allocate memory");
	return path;
}

static int
check_policy(const struct opener *op, const struct node *n, struct probe *p,
	     struct error **errp)
{
	if (!op->policy->follow_images)
		return error_set(errp, "'%s' names the backing file '%s', and following "
				 "what images name is switched off",
				 image_name(n), p->path);
	p->dirs = op->policy->image_dirs;
	work_run(probe_path, p);
	if (p->is_outside)
		return error_set(errp, "'%s' names the backing file '%s', which lies "
				 "outside of the folders for images",
				 image_name(n), p->path);
	return 0;
}

/* The format's options struct over a file's; its first member is `file`. */
static int
open_named(struct opener *op, struct node *n, char *path, bool is_device,
	   enum BlockdevDriver fmt, struct edge **ret_edge, struct error **errp)
{
	struct BlockdevOptions file = {
		.driver = is_device ? BLOCKDEV_DRIVER_HOST_DEVICE : BLOCKDEV_DRIVER_FILE,
		.u.file.filename = path,
	};
	struct BlockdevRef file_ref = { .type = BLOCKDEV_REF_DEFINITION,
					.u.definition = file };
	struct BlockdevOptions format = { .driver = fmt };
	struct node *child = NULL;
	int r;

	switch (fmt) {
	case BLOCKDEV_DRIVER_RAW:
		format.u.raw.file = &file_ref;
		break;
	case BLOCKDEV_DRIVER_QCOW2:
		format.u.qcow2.file = &file_ref;
		break;
	case BLOCKDEV_DRIVER_QCOW:
		format.u.qcow.file = &file_ref;
		break;
	case BLOCKDEV_DRIVER_LUKS:
		format.u.luks.file = &file_ref;
		break;
	default:
		return error_set(errp, "Could not open backing file: '%s' names the "
				 "backing format '%s', which is no image format",
				 image_name(n), BlockdevDriver_str(fmt));
	}
	r = open_definition(op, n, &format, ROLE_COW, &child, errp);
	return adopt(r, n, child, "backing", ROLE_COW, ret_edge, errp);
}

int
opener_backing_named(struct opener *op, struct node *n, const char *file,
		     const char *fmt, struct edge **ret_edge, struct error **errp)
{
	CLEANUP(cleanup_free) char *path = NULL;
	struct probe probe = { 0 };
	int driver;

	path = resolve(image_name(n), file, errp);
	if (!path)
		return -1;
	probe.path = path;
	if (check_policy(op, n, &probe, errp) < 0)
		return -1;
	/* A format is never guessed: a guest could have written any header. */
	if (!fmt)
		return error_set(errp, "Could not open backing file: '%s' does not say "
				 "the format of its backing file '%s'; state it in the "
				 "'backing' option, or in the image with: qemu-img rebase "
				 "-u -F FORMAT", image_name(n), file);
	driver = meta_enum_parse(&BlockdevDriver_meta, fmt);
	if (driver < 0)
		return error_set(errp, "Could not open backing file: Unknown driver '%s'",
				 fmt);
	return open_named(op, n, path, probe.is_device, (enum BlockdevDriver)driver,
			  ret_edge, errp);
}

const struct open_policy *
opener_policy(const struct opener *op)
{
	return op->policy;
}

int
opener_depth(const struct opener *op)
{
	return op->depth;
}

/* ---- encrypted layers ---- */

int
opener_encrypted(struct opener *op, struct node *n, const struct crypt_layer *layer,
		 void **ret_key, struct error **errp)
{
	const struct decryptor *d = op->policy->decryptor;

	(void)n;
	if (d)
		return d->unlock(op->policy->decryptor_user, layer, ret_key, errp);
	*ret_key = NULL;
	(void)refuse_record(op, layer);
	return 0;
}

/* ---- the whole tree ---- */

static void
publish(struct node *n)
{
	struct edge *e;

	if (n->life != NODE_OPENING)
		return;
	n->life = NODE_OPEN;
	LIST_FOREACH(e, &n->edges, in_parent)
		publish(e->child);
}

int
node_open(const struct BlockdevOptions *opts, const struct open_policy *policy,
	  struct node **ret_node, struct error **errp)
{
	struct opener op = { .policy = policy ? policy : &open_policy_default };
	struct inherited top = { 0 };
	struct error *err = NULL;
	struct node *n = NULL;
	int r;

	list_init(&op.refusals);
	if (!opts->node_name)
		return error_set(errp,
				 "'node-name' must be specified for the root node");
	op.top_name = opts->node_name;
	r = open_one(&op, opts, &top, &n, &err);
	if (op.refused) {
		if (!r)
			node_unref(n);
		error_free(err);
		err = NULL;
		r = refuse_answer(&op, &err);
	}
	refuse_forget(&op);
	if (r < 0) {
		error_propagate(errp, err);
		return -1;
	}
	publish(n);
	*ret_node = n;
	return 0;
}

int
node_open_driver(const struct driver *driver, const char *name, void *arg,
		 bool read_only, struct node **ret_node, struct error **errp)
{
	struct opener op = { .policy = &open_policy_default, .top_name = name };
	struct node *n = graph_node_new(driver, name, errp);
	int r;

	if (!n)
		return -1;
	list_init(&op.refusals);
	n->open_arg = arg;
	n->read_only = read_only;
	n->discard_unmap = true;
	r = driver->open ? driver->open(n, &op, errp) : 0;
	if (!r) {
		n->opened = true;
		r = finish_open(n, errp);
	}
	refuse_forget(&op);
	if (r < 0) {
		node_unref(n);
		return -1;
	}
	publish(n);
	*ret_node = n;
	return 0;
}

int
node_attach(struct node *n, struct node *child, const char *edge_name, unsigned role,
	    struct edge **ret_edge, struct error **errp)
{
	return attach(n, child, edge_name, role, ret_edge, errp);
}

/* ---- references and closing ---- */

struct node *
node_ref(struct node *n)
{
	assert(n->refs > 0);
	n->refs++;
	return n;
}

/* Let go of all children, and have what is locked for us on their files loosened. */
static void
drop_edges(struct node *n)
{
	struct change c;
	struct edge *e, *tmp;
	int r = change_begin(&c, NULL, 0, NULL);

	LIST_FOREACH(e, &n->edges, in_parent)
		if (!r)
			r = change_drop_edge(&c, e, NULL);
	if (!r)
		r = change_permit(&c, NULL);
	if (change_end(&c, r) == 0)
		return;
	/* No memory to do it properly: the locks stay wider than need be. */
	LIST_FOREACH_SAFE(e, tmp, &n->edges, in_parent) {
		struct node *child = e->child;

		graph_edge_point(e, NULL);
		graph_edge_free(e);
		node_unref(child);
	}
}

static void
node_close(struct node *n)
{
	int err;

	n->life = NODE_CLOSING;
	if (n->opened) {
		err = n->driver->close ? n->driver->close(n) : 0;
		if (err && node_close_failed)
			node_close_failed(n->name, err);
	}
	drop_edges(n);
	graph_node_free(n);
}

void
node_unref(struct node *n)
{
	if (!n)
		return;
	assert(n->refs > 0);
	if (--n->refs == 0)
		node_close(n);
}

void
node_unrefp(struct node **n)
{
	node_unref(*n);
	*n = NULL;
}

/* ---- the monitor's claim ---- */

int
node_add(const struct BlockdevOptions *opts, const struct open_policy *policy,
	 struct error **errp)
{
	struct node *n;

	if (node_open(opts, policy, &n, errp) < 0)
		return -1;
	n->monitor_owned = true;
	return 0;
}

static bool
has_outside_user(const struct node *n)
{
	struct use *u;

	LIST_FOREACH(u, &n->users, link)
		if (u->is_root && !root_is_job(root_of_use(u)))
			return true;
	return false;
}

int
node_del(const char *name, struct error **errp)
{
	struct node *n = node_find(name);

	if (!n)
		return error_set(errp, "Failed to find node with node-name='%s'", name);
	if (has_outside_user(n))
		return error_set(errp, "Node %s is in use", name);
	if (node_check_free(n, errp) < 0)
		return -1;
	if (!n->monitor_owned)
		return error_set(errp, "Node %s is not owned by the monitor", name);
	if (n->refs > 1)
		return error_set(errp, "Block device %s is in use", name);
	n->monitor_owned = false;
	node_unref(n);
	return 0;
}

static struct node *
last_owned(void)
{
	for (struct list *l = graph_nodes.prev; l != &graph_nodes; l = l->prev) {
		struct node *n = LIST_ENTRY(l, struct node, in_all);

		if (n->monitor_owned)
			return n;
	}
	return NULL;
}

void
node_close_all(void)
{
	struct node *n;

	while ((n = last_owned())) {
		n->monitor_owned = false;
		node_unref(n);
	}
}
