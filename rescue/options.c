/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/options.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "rescue/image.h"
#include "schema/types.h"

/* A file or block device by itself. */
static int
fill_file(struct BlockdevOptions *o, const struct options_place *place)
{
	o->driver = place->device ? BLOCKDEV_DRIVER_HOST_DEVICE : BLOCKDEV_DRIVER_FILE;
	o->has_read_only = true;
	o->read_only = place->read_only;
	if (place->direct) {
		o->cache = calloc(1, sizeof(*o->cache));
		if (!o->cache)
			return -1;
		o->cache->has_direct = o->cache->direct = true;
	}
	if (place->device)
		o->u.host_device.filename = strdup(place->path);
	else
		o->u.file.filename = strdup(place->path);
	return (place->device ? o->u.host_device.filename : o->u.file.filename) ? 0 : -1;
}

/* The same as the child of a format. */
static struct BlockdevRef *
file_ref(const struct options_place *place)
{
	struct BlockdevRef *ref = calloc(1, sizeof(*ref));

	if (!ref)
		return NULL;
	ref->type = BLOCKDEV_REF_DEFINITION;
	if (fill_file(&ref->u.definition, place) < 0) {
		BlockdevRef_free(ref);
		return NULL;
	}
	return ref;
}

/* An image's file, to be read. */
static struct BlockdevRef *
image_ref(const struct image *im)
{
	const struct options_place place = { im->filename, .device = im->is_device,
					     .read_only = true };

	return file_ref(&place);
}

/* What is written has no such policy. */
static void
limit_caches(struct BlockdevOptionsQcow2 *q)
{
	q->has_l2_cache_size = q->has_refcount_cache_size = true;
	q->l2_cache_size = q->refcount_cache_size = OPTIONS_TABLE_MEMORY;
}

/* What stands behind a layer: below, which is taken over, or nothing. */
static struct BlockdevRefOrNull *
backing_ref(struct BlockdevOptions *below)
{
	struct BlockdevRefOrNull *ref = calloc(1, sizeof(*ref));

	if (!ref)
		return NULL;
	ref->type = BLOCKDEV_REF_OR_NULL_NULL;
	if (below) {
		ref->type = BLOCKDEV_REF_OR_NULL_DEFINITION;
		ref->u.definition = *below;
		free(below);
	}
	return ref;
}

/* One layer over below, which is taken over if this succeeds. */
static struct BlockdevOptions *
layer_options(const struct image *im, struct BlockdevOptions *below)
{
	CLEANUP(BlockdevOptions_freep) struct BlockdevOptions *o = calloc(1, sizeof(*o));
	struct BlockdevRef **file;
	struct BlockdevRefOrNull **backing = NULL;

	if (!o)
		return NULL;
	o->has_read_only = o->read_only = true;
	switch (im->format) {
	case IMAGE_QCOW:
		o->driver = BLOCKDEV_DRIVER_QCOW;
		file = &o->u.qcow.file;
		backing = &o->u.qcow.backing;
		break;
	case IMAGE_QCOW2:
		o->driver = BLOCKDEV_DRIVER_QCOW2;
		file = &o->u.qcow2.file;
		backing = &o->u.qcow2.backing;
		if (im->data && !(o->u.qcow2.data_file = image_ref(im->data)))
			return NULL;
		break;
	case IMAGE_LUKS:
		o->driver = BLOCKDEV_DRIVER_LUKS;
		file = &o->u.luks.file;
		if (im->header && !(o->u.luks.header = image_ref(im->header)))
			return NULL;
		break;
	default:
		o->driver = BLOCKDEV_DRIVER_RAW;
		file = &o->u.raw.file;
	}
	*file = image_ref(im);
	if (!*file)
		return NULL;
	if (backing) {
		*backing = backing_ref(below);
		if (!*backing)
			return NULL;
	}
	return STEAL(o);
}

struct BlockdevOptions *
options_for_chain(const struct image_chain *chain)
{
	struct BlockdevOptions *below = NULL;

	for (unsigned i = chain->count; i-- > 0;) {
		struct BlockdevOptions *o = layer_options(chain->layer[i], below);

		if (!o) {
			BlockdevOptions_free(below);
			return NULL;
		}
		below = o;
	}
	below->node_name = strdup("source");
	if (!below->node_name) {
		BlockdevOptions_free(below);
		return NULL;
	}
	return below;
}

struct BlockdevCreateOptions *
options_create_qcow2(const struct options_place *place, const struct options_qcow2 *how)
{
	CLEANUP(BlockdevCreateOptions_freep) struct BlockdevCreateOptions *o = calloc(1, sizeof(*o));
	struct BlockdevCreateOptionsQcow2 *q;

	if (!o)
		return NULL;
	o->driver = BLOCKDEV_DRIVER_QCOW2;
	q = &o->u.qcow2;
	q->size = how->size;
	q->has_cluster_size = true;
	q->cluster_size = how->cluster;
	q->has_compression_type = how->zstd;
	q->compression_type = QCOW2_COMPRESSION_TYPE_ZSTD;
	q->file = file_ref(place);
	if (!q->file)
		return NULL;
	if (how->backing) {
		q->has_backing_fmt = true;
		q->backing_fmt = how->backing_is_qcow2 ? BLOCKDEV_DRIVER_QCOW2 : BLOCKDEV_DRIVER_RAW;
		q->backing_file = strdup(how->backing);
		if (!q->backing_file)
			return NULL;
	}
	return STEAL(o);
}

struct BlockdevOptions *
options_for_target(const struct options_place *place, bool qcow2)
{
	CLEANUP(BlockdevOptions_freep) struct BlockdevOptions *o = calloc(1, sizeof(*o));
	static _Atomic unsigned made;

	if (!o || asprintf(&o->node_name, "target%u", atomic_fetch_add(&made, 1)) < 0)
		return NULL;
	if (!qcow2)
		return fill_file(o, place) < 0 ? NULL : STEAL(o);
	o->driver = BLOCKDEV_DRIVER_QCOW2;
	o->has_read_only = true;
	o->read_only = place->read_only;
	/* What an interrupted run did and did not record is thrown away. */
	o->has_discard = true;
	o->discard = BLOCKDEV_DISCARD_OPTIONS_UNMAP;
	o->u.qcow2.backing = backing_ref(NULL);
	o->u.qcow2.file = file_ref(place);
	limit_caches(&o->u.qcow2);
	return o->u.qcow2.file && o->u.qcow2.backing ? STEAL(o) : NULL;
}
