/* SPDX-License-Identifier: Apache-2.0 */
/* blockdev-create of a qcow2 image: judge the options, claim the file, format it,
 * and give it space where that was asked for. */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/io.h"
#include "block/node.h"
#include "block/open.h"
#include "block/qcow2/format.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/resize.h"
#include "block/root.h"
#include "schema/types.h"

enum { CLUSTER_DEFAULT = 65536, REFCOUNT_BITS_DEFAULT = 16 };

/* An image that is being made. */
struct creation {
	const struct BlockdevCreateOptionsQcow2 *o;
	struct qcow2_format f;
	enum prealloc prealloc;
	struct node *file, *data;	/* data NULL: guest data goes to file */
	uint64_t data_size;		/* what the data file had before */
	bool touched;			/* something was written */
};

/* ---- options ---- */

struct rule {
	bool broken;
	const char *text;
};

static int
check_rules(const struct rule *rules, size_t n, struct error **errp)
{
	for (size_t i = 0; i < n; i++)
		if (rules[i].broken)
			return error_set(errp, "%s", rules[i].text);
	return 0;
}

static bool
is_cluster_size(uint64_t size)
{
	return is_pow2(size) && size >= UINT64_C(1) << QCOW2_CLUSTER_BITS_MIN &&
	       size <= UINT64_C(1) << QCOW2_CLUSTER_BITS_MAX;
}

/* What is wrong with the options, in the order in which QEMU looks. */
static int
check_options(const struct BlockdevCreateOptionsQcow2 *o, struct error **errp)
{
	bool v2 = o->has_version && o->version == BLOCKDEV_QCOW2_VERSION_V2;
	bool subclusters = o->has_extended_l2 && o->extended_l2;
	bool space = o->has_preallocation && o->preallocation != PREALLOC_MODE_OFF;
	bool raw = o->has_data_file_raw && o->data_file_raw;
	uint64_t cluster = o->has_cluster_size ? o->cluster_size : CLUSTER_DEFAULT;
	int64_t bits = o->has_refcount_bits ? o->refcount_bits : REFCOUNT_BITS_DEFAULT;
	const struct rule rules[] = {
		{ o->encrypt, "Cannot create an encrypted image: Quoin serves no encrypted images; "
			      "leave out 'encrypt'" },
		{ !is_aligned(o->size, 512), "Image size must be a multiple of 512 bytes" },
		{ subclusters && v2, "Extended L2 entries are only supported with compatibility "
				     "level 1.1 and above (use version=v3 or greater)" },
		{ !is_cluster_size(cluster), "Cluster size must be a power of two between 512 "
					     "and 2048k" },
		{ subclusters && cluster < UINT64_C(1) << QCOW2_CLUSTER_BITS_MIN_EXTL2,
		  "Extended L2 entries are only supported with cluster sizes of at least 16384 "
		  "bytes" },
		{ space && o->backing_file && !subclusters,
		  "Backing file and preallocation can only be used at the same time if "
		  "extended_l2 is on" },
		{ o->has_backing_fmt && !o->backing_file,
		  "Backing format cannot be used without backing file" },
		{ v2 && o->has_lazy_refcounts && o->lazy_refcounts,
		  "Lazy refcounts only supported with compatibility level 1.1 and above (use "
		  "version=v3 or greater)" },
		{ bits < 1 || bits > 64 || !is_pow2((uint64_t)bits),
		  "Refcount width must be a power of two and may not exceed 64 bits" },
		{ v2 && bits != REFCOUNT_BITS_DEFAULT,
		  "Different refcount widths than 16 bits require compatibility level 1.1 or "
		  "above (use version=v3 or greater)" },
		{ raw && !o->data_file, "data-file-raw requires data-file" },
		{ raw && o->backing_file, "Backing file and data-file-raw cannot be used at the "
					  "same time" },
		{ v2 && o->data_file, "External data files are only supported with compatibility "
				      "level 1.1 and above (use version=v3 or greater)" },
	};

	return check_rules(rules, ARRAY_SIZE(rules), errp);
}

static int
check_compression(const struct BlockdevCreateOptionsQcow2 *o, struct error **errp)
{
	if (!o->has_compression_type || o->compression_type == QCOW2_COMPRESSION_TYPE_ZLIB)
		return 0;
#ifndef HAVE_ZSTD
	return error_set(errp, "Parameter 'compression-type' does not accept value 'zstd'");
#endif
	if (o->has_version && o->version == BLOCKDEV_QCOW2_VERSION_V2)
		return error_set(errp, "Non-zlib compression type is only supported with "
				       "compatibility level 1.1 and above (use version=v3 or "
				       "greater)");
	return 0;
}

static enum prealloc
prealloc_of(const struct BlockdevCreateOptionsQcow2 *o)
{
	/* A raw image of its own has all of its disk: so have the tables. */
	if (!o->has_preallocation || o->preallocation == PREALLOC_MODE_OFF)
		return o->has_data_file_raw && o->data_file_raw ? PREALLOC_METADATA : PREALLOC_OFF;
	switch (o->preallocation) {
	case PREALLOC_MODE_METADATA:
		return PREALLOC_METADATA;
	case PREALLOC_MODE_FALLOC:
		return PREALLOC_FALLOC;
	default:
		return PREALLOC_FULL;
	}
}

/* The options are sound, and the nodes open. */
static void
set_format(struct creation *c)
{
	const struct BlockdevCreateOptionsQcow2 *o = c->o;

	c->prealloc = prealloc_of(o);
	c->f = (struct qcow2_format){
		.size = o->size,
		.version = o->has_version && o->version == BLOCKDEV_QCOW2_VERSION_V2 ? 2 : 3,
		.cluster_bits = (unsigned)__builtin_ctzll(o->has_cluster_size ? o->cluster_size
									      : CLUSTER_DEFAULT),
		.refcount_order = (unsigned)__builtin_ctzll(
			o->has_refcount_bits ? (uint64_t)o->refcount_bits : REFCOUNT_BITS_DEFAULT),
		.lazy_refcounts = o->has_lazy_refcounts && o->lazy_refcounts,
		.extended_l2 = o->has_extended_l2 && o->extended_l2,
		.compression = o->has_compression_type &&
					       o->compression_type == QCOW2_COMPRESSION_TYPE_ZSTD
				       ? QCOW2_COMPRESSION_ZSTD
				       : QCOW2_COMPRESSION_ZLIB,
		.backing_file = o->backing_file,
		.backing_format = o->has_backing_fmt ? BlockdevDriver_str(o->backing_fmt) : NULL,
		.data_file = c->data ? node_filename(c->data) : NULL,
		.data_raw = o->has_data_file_raw && o->data_file_raw,
	};
}

/* Open what the options name, and judge them in QEMU's order. */
static int
start(struct creation *c, struct error **errp)
{
	if (node_open_ref(c->o->file, &open_policy_default, &c->file, errp) ||
	    check_options(c->o, errp))
		return -1;
	if (c->o->data_file &&
	    node_open_ref(c->o->data_file, &open_policy_default, &c->data, errp))
		return -1;
	if (check_compression(c->o, errp))
		return -1;
	set_format(c);
	return qcow2_format_check(&c->f, errp);
}

/* ---- space ---- */

/* The file's size once every guest cluster has its place, or a little less: the
 * refcount table may have to grow. */
static uint64_t
full_size(const struct qcow2_format *f, uint64_t metadata)
{
	uint64_t cluster = UINT64_C(1) << f->cluster_bits;
	uint64_t per_block = cluster * 8 >> f->refcount_order;
	uint64_t per_table = cluster / (f->extended_l2 ? 16 : 8);
	uint64_t data = div_up(f->size, cluster), end = metadata >> f->cluster_bits;
	uint64_t had = div_up(end, per_block), blocks = had;

	end += data + div_up(data, per_table) - had;
	while (div_up(end + blocks, per_block) > blocks)
		blocks = div_up(end + blocks, per_block);
	return (end + blocks) << f->cluster_bits;
}

/* Open the empty image by itself and map all of its disk. */
static int
preallocate(struct creation *c, struct error **errp)
{
	struct BlockdevRef file = { .type = BLOCKDEV_REF_REFERENCE,
				    .u.reference = c->file->name };
	struct BlockdevRef data = { .type = BLOCKDEV_REF_REFERENCE };
	struct BlockdevRef image = { .type = BLOCKDEV_REF_DEFINITION };
	struct BlockdevRefOrNull none = { .type = BLOCKDEV_REF_OR_NULL_NULL };
	CLEANUP(node_unrefp) struct node *n = NULL;
	int r;

	image.u.definition.driver = BLOCKDEV_DRIVER_QCOW2;
	image.u.definition.u.qcow2.file = &file;
	image.u.definition.u.qcow2.backing = &none;
	if (c->data) {
		data.u.reference = c->data->name;
		image.u.definition.u.qcow2.data_file = &data;
	}
	if (node_open_ref(&image, &open_policy_default, &n, errp))
		return -1;
	r = qcow2_preallocate(n->state, 0, c->f.size, c->data || c->prealloc != PREALLOC_METADATA);
	/* Nothing was written through the node, so that it has nothing to flush. */
	if (!r)
		r = qcow2_settle(n->state);
	return r < 0 ? (error_set_errno(errp, r, "Could not preallocate metadata"), -1) : 0;
}

/* Give the file that guest data goes to the space for it.  What a data file holds
 * within the disk stays. */
static int
make_room(struct creation *c, struct error **errp)
{
	bool in_full = c->prealloc == PREALLOC_FALLOC || c->prealloc == PREALLOC_FULL;
	enum prealloc mode = in_full ? c->prealloc : PREALLOC_OFF;

	if (!c->data)
		return in_full ? node_truncate(c->file, full_size(&c->f, node_size(c->file)), false,
					       mode, errp)
			       : 0;
	if (c->data_size >= c->f.size)
		return 0;
	return node_truncate(c->data, c->f.size, false, mode, errp);
}

/* ---- the files ---- */

static int
claim(struct node *n, perm_set shared, struct root **ret, struct error **errp)
{
	return root_new(n, "root", PERM_WRITE | PERM_RESIZE | PERM_CONSISTENT_READ, shared, NULL,
			NULL, ret, errp);
}

static int
write_files(struct creation *c, struct error **errp)
{
	struct root *file = NULL, *data = NULL;
	int r = claim(c->file, PERM_ALL, &file, errp);

	/* Nobody else makes the data file shorter or longer: so it is not the image's
	 * own file either. */
	if (!r && c->data)
		r = claim(c->data, PERM_ALL & ~(perm_set)PERM_RESIZE, &data, errp);
	if (!r) {
		c->data_size = c->data ? node_size(c->data) : 0;
		c->touched = true;
		r = qcow2_format(c->file, &c->f, errp);
	}
	if (!r)
		r = make_room(c, errp);
	if (data)
		root_free(data);
	if (file)
		root_free(file);
	return r;
}

/* No half of an image stays behind, and no space that only it needed. */
static void
wipe(struct creation *c)
{
	if (!c->touched)
		return;
	(void)node_truncate(c->file, 0, false, PREALLOC_OFF, NULL);
	if (c->data && node_size(c->data) > c->data_size)
		(void)node_truncate(c->data, c->data_size, false, PREALLOC_OFF, NULL);
}

int
qcow2_create(const struct BlockdevCreateOptions *opts, struct error **errp)
{
	struct creation c = { .o = &opts->u.qcow2 };
	int r = start(&c, errp);

	if (!r)
		r = write_files(&c, errp);
	if (!r && c.prealloc != PREALLOC_OFF)
		r = preallocate(&c, errp);
	if (r)
		wipe(&c);
	else if (c.prealloc == PREALLOC_OFF && c.data_size > c.f.size)
		(void)node_truncate(c.data, c.f.size, false, PREALLOC_OFF, NULL);
	if (c.data)
		node_unref(c.data);
	if (c.file)
		node_unref(c.file);
	return r;
}
