/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a tree of nodes.
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

#include <stdlib.h>
#include <string.h>

#include "aio/co.h"
#include "aio/loop.h"
#include "base/bytes.h"
#include "base/error.h"
#include "block/change.h"
#include "block/driver.h"
#include "block/graph.h"
#include "block/node.h"
#include "block/opener.h"
#include "block/ranges.h"
#include "schema/types.h"

const struct open_policy open_policy_default = { .follow_images = true };

/* ---- TLS, where nobody handed it in ---- */

static struct tls_creds *
take_none(const char *id, struct error **errp)
{
	error_set(errp, "No TLS credentials with id '%s'", id);
	return NULL;
}

static void
drop_none(struct tls_creds *creds)
{
	(void)creds;
}

static const struct tls_client no_tls = { .take = take_none, .drop = drop_none };
static const struct tls_client *tls_client = &no_tls;

void
open_set_tls_client(const struct tls_client *client)
{
	tls_client = client;
}

const struct tls_client *
open_tls_client(void)
{
	return tls_client;
}

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
	if (o->has_active && !o->active)
		return error_set(errp, "Parameter 'active': Quoin has no inactive nodes");
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
const char *
opener_image_name(const struct node *n)
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
int
opener_definition(struct opener *op, struct node *parent,
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
		op->overlay = opener_image_name(parent);
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
	int r = change_begin_joining(&c, NULL, 0, &child, 1, errp);

	if (!r)
		r = change_add_edge(&c, n, child, edge_name, role, &e, errp);
	if (!r)
		r = change_permit(&c, errp);
	r = change_end(&c, r);
	if (!r && ret_edge)
		*ret_edge = e;
	return r;
}

int
opener_adopt(int result, struct node *n, struct node *child, const char *edge_name,
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
		r = opener_definition(op, n, &ref->u.definition, role, &child, errp);
	return opener_adopt(r, n, child, edge_name, role, ret_edge, errp);
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
		r = opener_definition(op, n, &ref->u.definition, ROLE_COW, &child, errp);
	return opener_adopt(r, n, child, "backing", ROLE_COW, ret_edge, errp);
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

static int
open_top(const struct BlockdevOptions *opts, const struct open_policy *policy,
	 struct node **ret_node, struct error **errp)
{
	struct opener op = { .policy = policy ? policy : &open_policy_default };
	struct inherited top = { 0 };
	struct error *err = NULL;
	struct node *n = NULL;
	int r;

	list_init(&op.refusals);
	op.top_name = opts->node_name ? opts->node_name : "";
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
node_open(const struct BlockdevOptions *opts, const struct open_policy *policy,
	  struct node **ret_node, struct error **errp)
{
	if (!opts->node_name)
		return error_set(errp,
				 "'node-name' must be specified for the root node");
	return open_top(opts, policy, ret_node, errp);
}

int
node_open_ref(const struct BlockdevRef *ref, const struct open_policy *policy,
	      struct node **ret_node, struct error **errp)
{
	if (ref->type == BLOCKDEV_REF_REFERENCE)
		return find_reference(ref->u.reference, ret_node, errp);
	return open_top(&ref->u.definition, policy, ret_node, errp);
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
