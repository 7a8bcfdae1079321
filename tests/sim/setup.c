/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/setup.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/qcow2/header.h"
#include "schema/types.h"
#include "tests/sim/disk.h"
#include "tests/sim/model.h"

static struct BlockdevRef
reference(const char *name)
{
	return (struct BlockdevRef){ .type = BLOCKDEV_REF_REFERENCE,
				     .u.reference = (char *)name };
}

static int
open_disks(const struct stack *k, const char *prefix, bool read_only, struct opened *o,
	   char names[3][32], struct error **errp)
{
	snprintf(names[0], 32, "%s-file", prefix);
	snprintf(names[1], 32, "%s-data", prefix);
	snprintf(names[2], 32, "%s-base", prefix);
	if (disk_open(k->file, names[0], read_only, &o->file, errp) ||
	    (k->data && disk_open(k->data, names[1], read_only, &o->data, errp)))
		return -1;
	return k->base ? disk_open(k->base, names[2], true, &o->base, errp) : 0;
}

int
setup_open(const struct setup *p, const struct stack *k, const char *prefix, bool read_only,
	   struct opened *ret, struct error **errp)
{
	char names[3][32];
	struct BlockdevRef file = reference(names[0]), data = reference(names[1]);
	struct BlockdevRefOrNull backing = {
		.type = k->base ? BLOCKDEV_REF_OR_NULL_REFERENCE : BLOCKDEV_REF_OR_NULL_NULL,
		.u.reference = names[2],
	};
	struct BlockdevOptions o = {
		.driver = BLOCKDEV_DRIVER_QCOW2, .node_name = (char *)prefix,
		.has_read_only = true, .read_only = read_only,
		.has_discard = true, .discard = BLOCKDEV_DISCARD_OPTIONS_UNMAP,
		.u.qcow2 = { .file = &file, .backing = &backing,
			     .data_file = k->data ? &data : NULL,
			     .has_discard_no_unref = true, .discard_no_unref = p->no_unref,
			     .has_pass_discard_other = true, .pass_discard_other = true },
	};
	struct opened opened = { 0 };

	if (open_disks(k, prefix, read_only, &opened, names, errp) ||
	    node_open(&o, NULL, &opened.image, errp)) {
		setup_close(&opened);
		return -1;
	}
	*ret = opened;
	return 0;
}

void
setup_close(struct opened *o)
{
	struct node *all[] = { o->image, o->data, o->base, o->file };

	for (unsigned i = 0; i < 4; i++)
		if (all[i])
			node_unref(all[i]);
	memset(o, 0, sizeof(*o));
}

static void
die(const char *what, struct error *err)
{
	fprintf(stderr, "%s: %s\n", what, err ? error_text(err) : "?");
	abort();
}

/* An empty image becomes one with a data file by its marks alone. */
static void
mark_data_file(struct image *m, bool raw)
{
	uint8_t field[8];

	image_read(m, QCOW2_OFF_INCOMPAT, field, sizeof(field));
	put_be64(field, get_be64(field) | QCOW2_INCOMPAT_DATA_FILE);
	image_write(m, QCOW2_OFF_INCOMPAT, field, sizeof(field));
	put_be64(field, raw ? QCOW2_AUTOCLEAR_DATA_RAW : 0);
	image_write(m, QCOW2_OFF_AUTOCLEAR, field, sizeof(field));
}

static void
format(const struct setup *p, const struct stack *k)
{
	struct BlockdevRef file = reference("new-file");
	struct BlockdevCreateOptions o = {
		.driver = BLOCKDEV_DRIVER_QCOW2,
		.u.qcow2 = {
			.file = &file, .size = p->sectors * IMAGE_SECTOR,
			.has_extended_l2 = p->extended, .extended_l2 = p->extended,
			.has_version = true,
			.version = p->version == 2 ? BLOCKDEV_QCOW2_VERSION_V2
						   : BLOCKDEV_QCOW2_VERSION_V3,
			.has_cluster_size = true, .cluster_size = UINT64_C(1) << p->cluster_bits,
			.has_lazy_refcounts = p->lazy, .lazy_refcounts = p->lazy,
			.has_refcount_bits = true, .refcount_bits = p->refcount_bits,
		},
	};
	struct opened opened = { 0 };
	struct error *err = NULL;
	char names[3][32];

	if (open_disks(k, "new", false, &opened, names, &err) ||
	    driver_find("qcow2")->create(&o, &err))
		die(setup_text(p), err);
	if (p->data_file)
		mark_data_file(k->file->now, p->data_raw);
	setup_close(&opened);
}

static void
fill_base(struct disk *base, uint64_t sectors)
{
	uint8_t *buf = malloc(sectors * IMAGE_SECTOR);

	assert(buf);
	model_fill_backing(buf, sectors);
	image_write(base->now, 0, buf, sectors * IMAGE_SECTOR);
	free(buf);
}

void
setup_make(const struct setup *p, struct sim *s, struct stack *ret)
{
	uint64_t whole = 3 * p->most * IMAGE_SECTOR + (UINT64_C(40) << p->cluster_bits);
	struct stack k = { 0 };

	k.file = disk_new(s, p->device, p->device ? whole : 0);
	if (p->data_file)
		k.data = disk_new(s, p->device, p->device ? p->most * IMAGE_SECTOR : 0);
	if (p->backed) {
		k.base = disk_new(s, false, 0);
		fill_base(k.base, p->most);
	}
	format(p, &k);
	*ret = k;
}

const char *
setup_text(const struct setup *p)
{
	static char text[200];

	snprintf(text, sizeof(text), "clusters of %u bytes, refcounts of %u bits, version %u%s%s%s%s%s%s",
		 1u << p->cluster_bits, p->refcount_bits, p->version, p->backed ? ", backed" : "",
		 p->lazy ? ", lazy" : "", p->extended ? ", subclusters" : "",
		 p->device ? ", on a device" : "",
		 p->data_raw ? ", raw data file" : p->data_file ? ", data file" : "",
		 p->no_unref ? ", discard-no-unref" : "");
	return text;
}
