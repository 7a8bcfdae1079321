/* SPDX-License-Identifier: Apache-2.0 */
/* blockdev-create of a qcow2 image: judge the options, claim the file, format it,
 * and give it space where that was asked for. */
#include <inttypes.h>
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

/* ---- options ---- */

/* What nobody here makes. */
static int
refuse(const struct BlockdevCreateOptionsQcow2 *o, struct error **errp)
{
	if (o->encrypt)
		return error_set(errp, "Cannot create an encrypted image: Quoin serves no encrypted "
				       "images; leave out 'encrypt'");
	if (o->data_file)
		return error_set(errp, "Unsupported qcow2 feature(s): external data file");
	if (o->has_data_file_raw && o->data_file_raw)
		return error_set(errp, "data-file-raw requires data-file");
	return 0;
}

static int
set_geometry(const struct BlockdevCreateOptionsQcow2 *o, struct qcow2_format *f,
	     struct error **errp)
{
	uint64_t cluster = o->has_cluster_size ? o->cluster_size : 65536;
	int64_t bits = o->has_refcount_bits ? o->refcount_bits : 16;
	bool v2 = o->has_version && o->version == BLOCKDEV_QCOW2_VERSION_V2;

	f->extended_l2 = o->has_extended_l2 && o->extended_l2;
	if (!is_aligned(o->size, 512))
		return error_set(errp, "Image size must be a multiple of 512 bytes");
	if (f->extended_l2 && v2)
		return error_set(errp, "Extended L2 entries are only supported with compatibility "
				       "level 1.1 and above (use version=v3 or greater)");
	if (!is_pow2(cluster) || cluster < UINT64_C(1) << QCOW2_CLUSTER_BITS_MIN ||
	    cluster > UINT64_C(1) << QCOW2_CLUSTER_BITS_MAX)
		return error_set(errp, "Cluster size must be a power of two between %d and %dk",
				 1 << QCOW2_CLUSTER_BITS_MIN, 1 << (QCOW2_CLUSTER_BITS_MAX - 10));
	if (f->extended_l2 && cluster < UINT64_C(1) << QCOW2_CLUSTER_BITS_MIN_EXTL2)
		return error_set(errp, "Extended L2 entries are only supported with cluster sizes "
				       "of at least %u bytes", 1u << QCOW2_CLUSTER_BITS_MIN_EXTL2);
	if (o->has_preallocation && o->preallocation != PREALLOC_MODE_OFF && o->backing_file &&
	    !f->extended_l2)
		return error_set(errp, "Backing file and preallocation can only be used at the same "
				       "time if extended_l2 is on");
	if (bits < 1 || bits > 64 || !is_pow2((uint64_t)bits))
		return error_set(errp, "Refcount width must be a power of two and may not exceed "
				       "64 bits");
	f->size = o->size;
	f->version = v2 ? 2 : 3;
	f->cluster_bits = (unsigned)__builtin_ctzll(cluster);
	f->refcount_order = (unsigned)__builtin_ctzll((uint64_t)bits);
	f->lazy_refcounts = o->has_lazy_refcounts && o->lazy_refcounts;
	f->compression = o->has_compression_type &&
					 o->compression_type == QCOW2_COMPRESSION_TYPE_ZSTD
				 ? QCOW2_COMPRESSION_ZSTD
				 : QCOW2_COMPRESSION_ZLIB;
	f->backing_file = o->backing_file;
	f->backing_format = o->has_backing_fmt ? BlockdevDriver_str(o->backing_fmt) : NULL;
	return qcow2_format_check(f, errp);
}

/* ---- space ---- */

static enum prealloc
prealloc_of(const struct BlockdevCreateOptionsQcow2 *o)
{
	if (!o->has_preallocation)
		return PREALLOC_OFF;
	switch (o->preallocation) {
	case PREALLOC_MODE_METADATA:
		return PREALLOC_METADATA;
	case PREALLOC_MODE_FALLOC:
		return PREALLOC_FALLOC;
	case PREALLOC_MODE_FULL:
		return PREALLOC_FULL;
	default:
		return PREALLOC_OFF;
	}
}

/* The file's size once every guest cluster has its place, or a little more. */
static uint64_t
full_size(const struct qcow2_format *f, uint64_t metadata)
{
	uint64_t cluster = UINT64_C(1) << f->cluster_bits;
	uint64_t data = round_up(f->size, cluster);
	uint64_t per_table = cluster / (f->extended_l2 ? 16 : 8);
	uint64_t tables = div_up(data >> f->cluster_bits, per_table) << f->cluster_bits;
	uint64_t counted = metadata + data + tables;
	uint64_t blocks = div_up(counted >> f->cluster_bits, cluster * 8 >> f->refcount_order);

	return counted + (blocks << f->cluster_bits);
}

/* Open the empty image by itself and map all of its disk. */
static int
preallocate(struct node *file, const struct qcow2_format *f, enum prealloc mode,
	    struct error **errp)
{
	struct BlockdevRef ref = { .type = BLOCKDEV_REF_REFERENCE, .u.reference = file->name };
	struct BlockdevRef image = { .type = BLOCKDEV_REF_DEFINITION };
	struct BlockdevRefOrNull none = { .type = BLOCKDEV_REF_OR_NULL_NULL };
	CLEANUP(node_unrefp) struct node *n = NULL;
	int r;

	if (mode != PREALLOC_METADATA &&
	    node_truncate(file, full_size(f, atomic_load(&file->size)), false, mode, errp))
		return -1;
	image.u.definition.driver = BLOCKDEV_DRIVER_QCOW2;
	image.u.definition.u.qcow2.file = &ref;
	image.u.definition.u.qcow2.backing = &none;
	if (node_open_ref(&image, &open_policy_default, &n, errp))
		return -1;
	r = qcow2_preallocate(n->state, 0, f->size, mode != PREALLOC_METADATA);
	if (!r)
		r = node_flush(n);
	return r < 0 ? (error_set_errno(errp, r, "Could not preallocate metadata"), -1) : 0;
}

/* ---- the file ---- */

static int
format_node(struct node *file, const struct BlockdevCreateOptionsQcow2 *o,
	    const struct qcow2_format *f, struct error **errp)
{
	struct root *claim;
	int r;

	if (root_new(file, "root", PERM_WRITE | PERM_RESIZE | PERM_CONSISTENT_READ, PERM_ALL, NULL,
		     NULL, &claim, errp))
		return -1;
	r = qcow2_format(file, f, errp);
	root_free(claim);
	if (!r && prealloc_of(o) != PREALLOC_OFF)
		r = preallocate(file, f, prealloc_of(o), errp);
	return r;
}

int
qcow2_create(const struct BlockdevCreateOptions *opts, struct error **errp)
{
	const struct BlockdevCreateOptionsQcow2 *o = &opts->u.qcow2;
	CLEANUP(node_unrefp) struct node *file = NULL;
	struct qcow2_format f = { 0 };

	if (refuse(o, errp))
		return -1;
	if (node_open_ref(o->file, &open_policy_default, &file, errp) ||
	    set_geometry(o, &f, errp))
		return -1;
	return format_node(file, o, &f, errp);
}
