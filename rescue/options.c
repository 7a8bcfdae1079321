/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/options.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "rescue/image.h"
#include "schema/types.h"

/* A file or block device, as the child of a format. */
static struct BlockdevRef *
file_ref(const char *path, bool device, bool read_only)
{
	struct BlockdevRef *ref = calloc(1, sizeof(*ref));
	struct BlockdevOptions *o;
	char *name = strdup(path);

	if (!ref || !name) {
		free(ref);
		free(name);
		return NULL;
	}
	ref->type = BLOCKDEV_REF_DEFINITION;
	o = &ref->u.definition;
	o->driver = device ? BLOCKDEV_DRIVER_HOST_DEVICE : BLOCKDEV_DRIVER_FILE;
	o->has_read_only = true;
	o->read_only = read_only;
	if (device)
		o->u.host_device.filename = name;
	else
		o->u.file.filename = name;
	return ref;
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
		break;
	case IMAGE_LUKS:
		o->driver = BLOCKDEV_DRIVER_LUKS;
		file = &o->u.luks.file;
		break;
	default:
		o->driver = BLOCKDEV_DRIVER_RAW;
		file = &o->u.raw.file;
	}
	*file = file_ref(im->filename, im->is_device, true);
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
options_create_qcow2(const char *path, uint64_t size)
{
	CLEANUP(BlockdevCreateOptions_freep) struct BlockdevCreateOptions *o = calloc(1, sizeof(*o));

	if (!o)
		return NULL;
	o->driver = BLOCKDEV_DRIVER_QCOW2;
	o->u.qcow2.size = size;
	o->u.qcow2.file = file_ref(path, false, false);
	return o->u.qcow2.file ? STEAL(o) : NULL;
}

struct BlockdevOptions *
options_open_qcow2(const char *path)
{
	CLEANUP(BlockdevOptions_freep) struct BlockdevOptions *o = calloc(1, sizeof(*o));

	if (!o)
		return NULL;
	o->driver = BLOCKDEV_DRIVER_QCOW2;
	o->u.qcow2.file = file_ref(path, false, false);
	o->node_name = strdup("target");
	return o->u.qcow2.file && o->node_name ? STEAL(o) : NULL;
}
