/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/format.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/io.h"
#include "block/qcow2/extensions.h"
#include "block/qcow2/header.h"
#include "block/qcow2/refs.h"

/* Where things go, in clusters: header, refcount table, refcount blocks, L1. */
struct layout {
	uint64_t table, blocks, l1, end;
};

int
qcow2_format_check(const struct qcow2_format *f, struct error **errp)
{
	/* QEMU's, which leaves room for rounding up. */
	const uint64_t max = round_down(INT64_MAX, UINT64_C(1) << 30);

	if (f->backing_file && strlen(f->backing_file) > QCOW2_BACKING_MAX)
		return error_set(errp, "Backing file name too long");
	if (f->size > INT64_MAX)
		return error_set(errp, "Could not resize image: Image size cannot be negative");
	if (f->size > max)
		return error_set(errp, "Could not resize image: offset(%" PRIu64 ") exceeds "
				       "maximum(%" PRIu64 ")", f->size, max);
	if (qcow2_l1_entries(f->size, f->cluster_bits, f->extended_l2) > QCOW2_L1_MAX / 8)
		return error_set(errp, "Could not resize image: Failed to grow the L1 table: File "
				       "too large");
	return 0;
}

static void
plan(const struct qcow2_format *f, struct layout *l)
{
	uint64_t per_block = UINT64_C(8) << f->cluster_bits >> f->refcount_order;
	uint64_t per_cluster = UINT64_C(1) << (f->cluster_bits - 3);
	uint64_t l1 = div_up(qcow2_l1_entries(f->size, f->cluster_bits, f->extended_l2), per_cluster);
	uint64_t table = 1, blocks = 1;

	for (;;) {
		uint64_t end = 1 + table + blocks + l1;

		if (div_up(end, per_block) > blocks)
			blocks = div_up(end, per_block);
		else if (div_up(blocks, per_cluster) > table)
			table = div_up(blocks, per_cluster);
		else
			break;
	}
	l->table = 1;
	l->blocks = l->table + table;
	l->l1 = l->blocks + blocks;
	l->end = l->l1 + l1;
}

static int
write_header(struct node *file, const struct qcow2_format *f, const struct layout *l,
	     uint8_t *cluster, struct error **errp)
{
	size_t size = (size_t)1 << f->cluster_bits, used;
	struct qcow2_exts exts = { 0 };
	struct qcow2_header h = {
		.magic = QCOW2_MAGIC, .version = f->version, .cluster_bits = f->cluster_bits,
		.size = f->size, .l1_off = l->l1 << f->cluster_bits,
		.l1_size = (uint32_t)qcow2_l1_entries(f->size, f->cluster_bits, f->extended_l2),
		.reftable_off = l->table << f->cluster_bits,
		.reftable_clusters = (uint32_t)(l->blocks - l->table),
		.refcount_order = f->refcount_order, .compression = (uint8_t)f->compression,
		.compat = f->lazy_refcounts ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0,
		.incompat = (f->compression ? QCOW2_INCOMPAT_COMPRESSION : 0) |
			    (f->extended_l2 ? QCOW2_INCOMPAT_EXTL2 : 0) |
			    (f->data_file ? QCOW2_INCOMPAT_DATA_FILE : 0),
		.autoclear = f->data_raw ? QCOW2_AUTOCLEAR_DATA_RAW : 0,
		.header_len = f->version < 3 ? QCOW2_HEADER_V2 : QCOW2_HEADER_MAX,
	};
	int r = 0;

	if (l->l1 == l->end)	/* an empty disk has no L1 table, but a place */
		h.l1_off = 0;
	if (f->backing_format)
		r = qcow2_ext_set(&exts, QCOW2_EXT_BACKING_FORMAT, f->backing_format,
				  (uint32_t)strlen(f->backing_format));
	if (!r && f->data_file)
		r = qcow2_ext_set(&exts, QCOW2_EXT_DATA_FILE, f->data_file,
				  (uint32_t)strlen(f->data_file));
	used = h.header_len;
	/* The names of features are left out, as by QEMU, where there is little room. */
	if (!r && f->version >= 3 && size - used - qcow2_ext_encode(&exts, cluster, size) >= 4096)
		r = qcow2_ext_add_names(&exts);
	memset(cluster, 0, size);
	if (!r) {
		size_t n = qcow2_ext_encode(&exts, cluster + used, size - used);

		r = n ? 0 : -EINVAL;
		used += n;
	}
	qcow2_ext_done(&exts);
	if (!r && f->backing_file) {
		h.backing_off = used;
		h.backing_len = (uint32_t)strlen(f->backing_file);
		if (h.backing_len > size - used)
			r = -EINVAL;
		else
			memcpy(cluster + used, f->backing_file, h.backing_len);
	}
	if (!r) {
		uint8_t head[QCOW2_HEADER_MAX];

		memcpy(cluster, head, qcow2_header_encode(&h, head));
		r = node_pwrite(file, 0, cluster, size);
	}
	if (r == -EINVAL)
		return error_set(errp, "Backing file name too long");
	return r < 0 ? (error_set_errno(errp, r, "Could not write qcow2 header"), -1) : 0;
}

static int
write_counts(struct node *file, const struct qcow2_format *f, const struct layout *l,
	     uint8_t *cluster)
{
	uint64_t per_block = UINT64_C(8) << f->cluster_bits >> f->refcount_order;
	uint64_t per_cluster = UINT64_C(1) << (f->cluster_bits - 3);
	size_t size = (size_t)1 << f->cluster_bits;
	int r = 0;

	for (uint64_t b = l->blocks; b < l->l1 && !r; b++) {
		uint64_t first = (b - l->blocks) * per_block;

		memset(cluster, 0, size);
		for (uint64_t i = 0; i < per_block && first + i < l->end; i++)
			qcow2_refcount_put(cluster, f->refcount_order, i, 1);
		r = node_pwrite(file, b << f->cluster_bits, cluster, size);
	}
	for (uint64_t t = l->table; t < l->blocks && !r; t++) {
		uint64_t first = l->blocks + (t - l->table) * per_cluster;

		memset(cluster, 0, size);
		for (uint64_t i = 0; i < per_cluster && first + i < l->l1; i++)
			put_be64(cluster + 8 * i, (first + i) << f->cluster_bits);
		r = node_pwrite(file, t << f->cluster_bits, cluster, size);
	}
	memset(cluster, 0, size);
	for (uint64_t c = l->l1; c < l->end && !r; c++)
		r = node_pwrite(file, c << f->cluster_bits, cluster, size);
	return r;
}

int
qcow2_format(struct node *file, const struct qcow2_format *f, struct error **errp)
{
	CLEANUP(cleanup_free) uint8_t *cluster = malloc((size_t)1 << f->cluster_bits);
	struct layout l;
	int r;

	if (!cluster)
		return error_set(errp, "Cannot allocate memory");
	if (qcow2_format_check(f, errp))
		return -1;
	plan(f, &l);
	if (node_truncate(file, 0, false, PREALLOC_OFF, errp))
		return -1;
	/* The header last: only a whole image is one. */
	r = write_counts(file, f, &l, cluster);
	if (!r)
		r = node_flush(file);
	if (r < 0)
		return error_set_errno(errp, r, "Could not write refcount table"), -1;
	if (write_header(file, f, &l, cluster, errp))
		return -1;
	r = node_flush(file);
	return r < 0 ? (error_set_errno(errp, r, "Could not write qcow2 header"), -1) : 0;
}
