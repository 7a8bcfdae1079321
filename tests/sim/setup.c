/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/setup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/io.h"
#include "block/qcow2/header.h"
#include "schema/types.h"
#include "tests/sim/disk.h"

enum { NAME_LEN = 32 };

/* Also what headers call them. */
static const char *const layers[LAYERS] = { "top", "mid", "base" };

struct names {
	char file[LAYERS][NAME_LEN], image[LAYERS][NAME_LEN], data[NAME_LEN];
};

static struct BlockdevRef
reference(const char *name)
{
	return (struct BlockdevRef){ .type = BLOCKDEV_REF_REFERENCE,
				     .u.reference = (char *)name };
}

static void
make_names(const struct setup *p, const char *prefix, struct names *n)
{
	for (enum layer l = TOP; l < LAYERS; l++) {
		snprintf(n->image[l], NAME_LEN, "%s-%s", prefix, layers[l]);
		snprintf(n->file[l], NAME_LEN, "%s-%s%s", prefix, layers[l],
			 setup_is_image(p, l) ? "-file" : "");
	}
	snprintf(n->data, NAME_LEN, "%s-data", prefix);
}

bool
setup_is_image(const struct setup *p, enum layer l)
{
	return l != BASE || p->base_image;
}

struct model_below
setup_content(const struct setup *p)
{
	uint64_t cluster = UINT64_C(1) << (p->cluster_bits - 9);

	return (struct model_below){
		.base_n = !p->backed ? 0 : p->base_image ? p->sectors * 2 / 3 : p->most,
		.mid_from = 2 * cluster,
		.mid_n = p->mid ? 3 * cluster : 0,
	};
}

enum layer
setup_below(const struct setup *p, const struct stack *k, enum layer l)
{
	uint8_t field[12];
	char name[8] = "";

	if (!setup_is_image(p, l))
		return LAYERS;
	image_read(k->layer[l]->now, QCOW2_OFF_BACKING, field, sizeof(field));
	if (get_be64(field))
		image_read(k->layer[l]->now, get_be64(field), name,
			   min_u64(get_be32(field + 8), sizeof(name) - 1));
	for (enum layer below = l + 1; below < LAYERS; below++)
		if (!strcmp(name, layers[below]))
			return below;
	return LAYERS;
}

/* ---- opening ---- */

static int
open_layer(const struct setup *p, const struct stack *k, enum layer l, const struct names *names,
	   bool read_only, struct opened *o, struct error **errp)
{
	enum layer below = setup_below(p, k, l);
	struct BlockdevRef file = reference(names->file[l]), data = reference(names->data);
	struct BlockdevRefOrNull backing = {
		.type = below < LAYERS ? BLOCKDEV_REF_OR_NULL_REFERENCE
				       : BLOCKDEV_REF_OR_NULL_NULL,
		.u.reference = (char *)(below < LAYERS ? names->image[below] : NULL),
	};
	struct BlockdevOptions q = {
		.driver = BLOCKDEV_DRIVER_QCOW2, .node_name = (char *)names->image[l],
		.has_read_only = true, .read_only = read_only,
		.has_discard = true, .discard = BLOCKDEV_DISCARD_OPTIONS_UNMAP,
		.u.qcow2 = { .file = &file, .backing = &backing,
			     .data_file = k->data && l == TOP ? &data : NULL,
			     .has_discard_no_unref = true,
			     .discard_no_unref = p->no_unref && l == TOP,
			     .has_pass_discard_other = true, .pass_discard_other = true },
	};

	if (below < LAYERS && open_layer(p, k, below, names, true, o, errp))
		return -1;
	if (!setup_is_image(p, l)) {
		if (disk_open(k->layer[l], names->file[l], read_only, &o->file[l], errp))
			return -1;
		o->image[l] = node_ref(o->file[l]);
		return 0;
	}
	/* Writable: a commit may make the layer so. */
	if (disk_open(k->layer[l], names->file[l], false, &o->file[l], errp) ||
	    (q.u.qcow2.data_file && disk_open(k->data, names->data, read_only, &o->data, errp)))
		return -1;
	return node_open(&q, NULL, &o->image[l], errp);
}

int
setup_open(const struct setup *p, const struct stack *k, enum layer l, const char *prefix,
	   bool read_only, struct opened *ret, struct error **errp)
{
	struct opened opened = { 0 };
	struct names names;

	make_names(p, prefix, &names);
	if (open_layer(p, k, l, &names, read_only, &opened, errp)) {
		setup_close(&opened);
		return -1;
	}
	*ret = opened;
	return 0;
}

static void
drop(struct node *n)
{
	if (n)
		node_unref(n);
}

void
setup_close(struct opened *o)
{
	for (enum layer l = TOP; l < LAYERS; l++)
		drop(o->image[l]);
	for (enum layer l = TOP; l < LAYERS; l++)
		drop(o->file[l]);
	drop(o->data);
	memset(o, 0, sizeof(*o));
}

/* ---- making ---- */

static void
die(const char *what, struct error *err)
{
	fprintf(stderr, "%s: %s\n", what, err ? error_text(err) : "?");
	abort();
}

static enum layer
made_above(const struct setup *p, enum layer l)
{
	if (l == TOP && p->mid)
		return MID;
	return l < BASE && p->backed ? BASE : LAYERS;
}

/* As blockdev-create does it.  Only the top one has all that the setup says. */
static void
format(const struct setup *p, const struct stack *k, enum layer l)
{
	enum layer below = made_above(p, l);
	struct BlockdevRef file = reference("new-file"), data = reference("new-data");
	bool top = l == TOP;
	struct BlockdevCreateOptions o = {
		.driver = BLOCKDEV_DRIVER_QCOW2,
		.u.qcow2 = {
			.file = &file, .data_file = top && p->data_file ? &data : NULL,
			.has_data_file_raw = top && p->data_raw, .data_file_raw = p->data_raw,
			.size = (l == BASE ? setup_content(p).base_n : p->sectors) * IMAGE_SECTOR,
			.has_extended_l2 = top && p->extended, .extended_l2 = p->extended,
			.has_version = true,
			.version = top && p->version == 2 ? BLOCKDEV_QCOW2_VERSION_V2
							  : BLOCKDEV_QCOW2_VERSION_V3,
			.backing_file = (char *)(below < LAYERS ? layers[below] : NULL),
			.has_backing_fmt = below < LAYERS,
			.backing_fmt = below < LAYERS && setup_is_image(p, below)
					       ? BLOCKDEV_DRIVER_QCOW2
					       : BLOCKDEV_DRIVER_RAW,
			.has_cluster_size = true, .cluster_size = UINT64_C(1) << p->cluster_bits,
			.has_preallocation = top && p->preallocated,
			.preallocation = PREALLOC_MODE_METADATA,
			.has_lazy_refcounts = top && p->lazy, .lazy_refcounts = p->lazy,
			.has_refcount_bits = top, .refcount_bits = p->refcount_bits,
		},
	};
	struct node *n = NULL, *d = NULL;
	struct error *err = NULL;

	if (disk_open(k->layer[l], "new-file", false, &n, &err) ||
	    (o.u.qcow2.data_file && disk_open(k->data, "new-data", false, &d, &err)) ||
	    driver_find("qcow2")->create(&o, &err))
		die(setup_text(p), err);
	drop(d);
	drop(n);
}

/* What the guest sees where nothing was written. */
static void
fill(const struct setup *p, const struct stack *k, enum layer l, uint64_t from, uint64_t n)
{
	uint8_t *buf = sim_alloc(n * IMAGE_SECTOR);
	struct error *err = NULL;
	struct opened o;

	model_fill_below(buf, l == MID, from, n);
	if (setup_open(p, k, l, "new", false, &o, &err) ||
	    node_pwrite(o.image[l], from * IMAGE_SECTOR, buf, n * IMAGE_SECTOR))
		die("a layer is not filled", err);
	setup_close(&o);
	free(buf);
}

void
setup_disks(const struct setup *p, struct sim *s, uint64_t device_size, struct stack *ret)
{
	*ret = (struct stack){ 0 };
	ret->layer[TOP] = disk_new(s, p->device, p->device ? device_size : 0);
	if (p->data_file)
		ret->data = disk_new(s, false, 0);
	if (p->mid)
		ret->layer[MID] = disk_new(s, false, 0);
	if (p->backed)
		ret->layer[BASE] = disk_new(s, false, 0);
}

void
setup_make(const struct setup *p, struct sim *s, struct stack *ret)
{
	uint64_t whole = (p->tight ? 1 : 3) * p->most * IMAGE_SECTOR +
			 (UINT64_C(1) * (p->tight ? 8 : 40) << p->cluster_bits);
	struct model_below below = setup_content(p);

	setup_disks(p, s, whole, ret);
	for (enum layer l = TOP; l < LAYERS; l++)
		if (ret->layer[l] && setup_is_image(p, l))
			format(p, ret, l);
	if (p->backed)
		fill(p, ret, BASE, 0, below.base_n);
	if (p->mid)
		fill(p, ret, MID, below.mid_from, below.mid_n);
}

const char *
setup_text(const struct setup *p)
{
	static char text[240];

	snprintf(text, sizeof(text),
		 "clusters of %u bytes, refcounts of %u bits, version %u%s%s%s%s%s%s%s",
		 1u << p->cluster_bits, p->refcount_bits, p->version,
		 p->mid ? ", on an image on an image"
		 : p->base_image ? ", on an image" : p->backed ? ", backed" : "",
		 p->lazy ? ", lazy" : "", p->extended ? ", subclusters" : "",
		 p->tight ? ", on a device without room" : p->device ? ", on a device" : "",
		 p->data_raw ? ", raw data file" : p->data_file ? ", data file" : "",
		 p->no_unref ? ", discard-no-unref" : "",
		 p->preallocated ? ", preallocated" : "");
	return text;
}
