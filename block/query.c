/* SPDX-License-Identifier: Apache-2.0 */
/* query-named-block-nodes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/filename.h"
#include "block/graph.h"
#include "block/node.h"
#include "block/snapshot.h"
#include "schema/types.h"

static int
no_memory(struct error **errp)
{
	return error_set(errp, "Cannot allocate memory");
}

/* A format's storage: its file, and where its data lies apart, that too.  A filter's
 * is that of what it filters. */
enum { STORAGE_MAX = 4 };

static unsigned
pin_storage(const struct node *n, struct node *nodes[STORAGE_MAX])
{
	unsigned roles = node_filtered(n) ? ROLE_FILTERED : ROLE_DATA | ROLE_METADATA;
	unsigned count = 0;
	struct edge *e;

	LIST_FOREACH(e, &n->edges, in_parent)
		if (e->child && e->role & roles && count < STORAGE_MAX)
			nodes[count++] = node_pin(e->child);
	return count;
}

/* Bytes on the host: the driver's word, or the sum over what it stores in. */
static int
allocated_size(struct node *n, uint64_t *ret_bytes)
{
	struct node *storage[STORAGE_MAX];
	uint64_t sum = 0, bytes;
	unsigned count;
	int err = 0;

	if (n->driver->allocated_size)
		return n->driver->allocated_size(n, ret_bytes);
	if (node_is_protocol(n))
		return -ENOTSUP;
	count = pin_storage(n, storage);
	for (unsigned i = 0; i < count; i++) {
		if (!err)
			err = allocated_size(storage[i], &bytes);
		if (!err)
			sum += bytes;
		node_unpin(storage[i]);
	}
	if (!err)
		*ret_bytes = sum;
	return err;
}

/* A filter that says nothing itself is asked for what is below. */
static int
driver_info(struct node *n, struct ImageInfo *i, struct error **errp)
{
	struct node *child = node_filtered(n);

	if (n->driver->info)
		return n->driver->info(n, i, errp);
	return child ? node_info_above(child, i, errp) : 0;
}

int
node_info_above(struct node *n, struct ImageInfo *info, struct error **errp)
{
	struct ImageInfo *own = calloc(1, sizeof(*own));
	int r;

	if (!own)
		return no_memory(errp);
	r = driver_info(n, own, errp);
	info->has_dirty_flag = own->has_dirty_flag;
	info->dirty_flag = own->dirty_flag;
	info->has_cluster_size = own->has_cluster_size;
	info->cluster_size = own->cluster_size;
	ImageInfo_free(own);
	return r;
}

/* Those of the node that holds them for n. */
static int
add_snapshots(struct node *n, struct ImageInfo *i, struct error **errp)
{
	struct node *holder = snapshot_holder(n);
	struct ImageInfo *own;
	int r;

	if (!holder || holder == n)
		return 0;
	own = calloc(1, sizeof(*own));
	if (!own)
		return no_memory(errp);
	node_pin(holder);
	r = driver_info(holder, own, errp);
	node_unpin(holder);
	i->snapshots = STEAL(own->snapshots);
	ImageInfo_free(own);
	return r;
}

static int
fill_image(struct node *n, struct ImageInfo *i, struct error **errp)
{
	uint64_t bytes;

	i->virtual_size = (int64_t)node_size(n);
	i->format = strdup(n->driver->name);
	if (allocated_size(n, &bytes) == 0) {
		i->has_actual_size = true;
		i->actual_size = (int64_t)bytes;
	}
	if (driver_info(n, i, errp) < 0 || add_snapshots(n, i, errp) < 0)
		return -1;
	if (i->backing_filename && !i->full_backing_filename)
		i->full_backing_filename =
			filename_of_named_backing(n, i->backing_filename);
	if (!i->filename)
		i->filename = filename_of(n, i);
	return i->format && i->filename ? 0 : no_memory(errp);
}

/* n's image and, unless flat, those below it; *depth counts the latter. */
static int
query_image(struct node *n, bool flat, int64_t *depth, struct ImageInfo **ret_image,
	    struct error **errp)
{
	struct ImageInfo *i = calloc(1, sizeof(*i));
	struct node *under = flat ? NULL : node_below(n);
	int r;

	if (!i)
		return no_memory(errp);
	if (under)
		node_pin(under);
	r = fill_image(n, i, errp);
	if (!r && under) {
		++*depth;
		r = query_image(under, false, depth, &i->backing_image, errp);
	}
	node_unpin(under);
	if (r < 0) {
		ImageInfo_free(i);
		return -1;
	}
	*ret_image = i;
	return 0;
}

/* As its image is named where it is asked for itself. */
static int
name_backing(struct node *under, struct BlockDeviceInfo *d, struct error **errp)
{
	struct ImageInfo *image = d->image->backing_image, *alone = NULL;
	int64_t depth = 0;

	if (!image && query_image(under, true, &depth, &alone, errp) < 0)
		return -1;
	d->backing_file = strdup((image ? image : alone)->filename);
	ImageInfo_free(alone);
	return d->backing_file ? 0 : no_memory(errp);
}

static int
fill_node(struct node *n, bool flat, struct BlockDeviceInfo *d, struct error **errp)
{
	struct node *under = node_backing(n);
	int r = 0;

	d->node_name = strdup(n->name);
	d->drv = strdup(n->driver->name);
	d->ro = n->read_only;
	d->active = true;
	d->detect_zeroes = n->detect_zeroes_unmap ? BLOCKDEV_DETECT_ZEROES_OPTIONS_UNMAP
			   : n->detect_zeroes	  ? BLOCKDEV_DETECT_ZEROES_OPTIONS_ON
						  : BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF;
	d->cache = calloc(1, sizeof(*d->cache));
	if (!d->node_name || !d->drv || !d->cache)
		return no_memory(errp);
	d->cache->writeback = true;
	d->cache->direct = n->direct;
	d->cache->no_flush = n->no_flush;
	if (dirty_query(n, &d->dirty_bitmaps) < 0)
		return no_memory(errp);
	if (under)
		node_pin(under);
	r = query_image(n, flat, &d->backing_file_depth, &d->image, errp);
	if (!r && under)
		r = name_backing(under, d, errp);
	node_unpin(under);
	if (r < 0)
		return -1;
	d->file = strdup(d->image->filename);
	return d->file ? 0 : no_memory(errp);
}

int
node_query(struct node *n, bool flat, struct BlockDeviceInfo **ret_info,
	   struct error **errp)
{
	struct BlockDeviceInfo *d = calloc(1, sizeof(*d));

	if (!d)
		return no_memory(errp);
	if (fill_node(n, flat, d, errp) < 0) {
		BlockDeviceInfo_free(d);
		return -1;
	}
	*ret_info = d;
	return 0;
}

/* Add n to the list.  */
static int
add_node(struct BlockDeviceInfoList *l, struct node *n, bool flat, struct error **errp)
{
	struct BlockDeviceInfo *d = NULL;

	if (node_query(n, flat, &d, errp) < 0)
		return -1;
	if (BlockDeviceInfoList_add(l, d) < 0) {
		BlockDeviceInfo_free(d);
		return no_memory(errp);
	}
	return 0;
}

struct snapshot {
	struct node **nodes;
	size_t count;
};

/* The nodes as they are now, the latest first, each kept alive. */
static int
take_snapshot(struct snapshot *s, struct error **errp)
{
	size_t room = 1;
	struct node *n;

	LIST_FOREACH(n, &graph_nodes, in_all)
		room++;
	*s = (struct snapshot){ .nodes = calloc(room, sizeof(*s->nodes)) };
	if (!s->nodes)
		return no_memory(errp);
	for (struct list *l = graph_nodes.prev; l != &graph_nodes; l = l->prev) {
		n = LIST_ENTRY(l, struct node, in_all);
		if (n->life == NODE_OPEN)
			s->nodes[s->count++] = node_pin(n);
	}
	return 0;
}

int
node_query_all(bool flat, struct BlockDeviceInfoList **ret_list, struct error **errp)
{
	struct BlockDeviceInfoList *l = calloc(1, sizeof(*l));
	struct snapshot s = { 0 };
	int r;

	r = l ? take_snapshot(&s, errp) : no_memory(errp);
	for (size_t i = 0; i < s.count; i++) {
		if (!r)
			r = add_node(l, s.nodes[i], flat, errp);
		node_unpin(s.nodes[i]);
	}
	free(s.nodes);
	if (r < 0) {
		BlockDeviceInfoList_free(l);
		return -1;
	}
	*ret_list = l;
	return 0;
}
