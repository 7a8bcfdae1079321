/* SPDX-License-Identifier: Apache-2.0 */
/* What query-named-block-nodes tells of a qcow2 image. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "block/qcow2/bitmaps.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/snapshots.h"
#include "schema/types.h"

struct SnapshotInfo *
qcow2_snapshot_info(const struct qcow2_snapshot *s)
{
	struct SnapshotInfo *i = calloc(1, sizeof(*i));

	if (!i)
		return NULL;
	i->id = strdup(s->id);
	i->name = strdup(s->name);
	i->vm_state_size = (int64_t)s->vm_state_size;
	i->date_sec = s->date_sec;
	i->date_nsec = s->date_nsec;
	i->vm_clock_sec = (int64_t)(s->vm_clock_nsec / 1000000000);
	i->vm_clock_nsec = (int64_t)(s->vm_clock_nsec % 1000000000);
	i->has_icount = s->icount != UINT64_MAX;
	i->icount = i->has_icount ? (int64_t)s->icount : 0;
	if (i->id && i->name)
		return i;
	SnapshotInfo_free(i);
	return NULL;
}

static int
add_snapshot(struct ImageInfo *info, const struct qcow2_snapshot *s)
{
	struct SnapshotInfo *i = qcow2_snapshot_info(s);

	if (!i)
		return -1;
	if (!info->snapshots)
		info->snapshots = calloc(1, sizeof(*info->snapshots));
	if (info->snapshots && !SnapshotInfoList_add(info->snapshots, i))
		return 0;
	SnapshotInfo_free(i);
	return -1;
}

static int
add_specific(const struct qcow2 *q, struct ImageInfo *info)
{
	struct ImageInfoSpecific *s = calloc(1, sizeof(*s));
	struct ImageInfoSpecificQCow2 *d = calloc(1, sizeof(*d));

	if (!s || !d) {
		free(s);
		free(d);
		return -1;
	}
	s->type = IMAGE_INFO_SPECIFIC_KIND_QCOW2;
	s->u.qcow2.data = d;
	info->format_specific = s;
	d->compat = strdup(q->version < 3 ? "0.10" : "1.1");
	if (!d->compat)
		return -1;
	d->refcount_bits = INT64_C(1) << q->refcount_order;
	d->compression_type = q->header.compression == QCOW2_COMPRESSION_ZSTD
				      ? QCOW2_COMPRESSION_TYPE_ZSTD
				      : QCOW2_COMPRESSION_TYPE_ZLIB;
	if (q->version < 3)
		return 0;
	if (q->exts.data_file) {
		d->data_file = strdup(q->exts.data_file);
		if (!d->data_file)
			return -1;
	}
	d->has_data_file_raw = q->external_data;
	d->data_file_raw = q->data_raw;
	d->has_lazy_refcounts = d->has_corrupt = d->has_extended_l2 = true;
	d->lazy_refcounts = q->header.compat & QCOW2_COMPAT_LAZY_REFCOUNTS;
	d->corrupt = q->header.incompat & QCOW2_INCOMPAT_CORRUPT;
	d->extended_l2 = q->header.incompat & QCOW2_INCOMPAT_EXTL2;
	return 0;
}

int
qcow2_info(struct node *n, struct ImageInfo *info, struct error **errp)
{
	const struct qcow2 *q = n->state;
	int r;

	info->has_cluster_size = true;
	info->cluster_size = q->cluster_size;
	info->has_dirty_flag = true;
	info->dirty_flag = q->header.incompat & QCOW2_INCOMPAT_DIRTY;
	if (q->encrypted)
		info->has_encrypted = info->encrypted = true;
	r = add_specific(q, info);
	if (!r && qcow2_bitmaps_info(n->state, &info->format_specific->u.qcow2.data->bitmaps))
		r = -1;
	for (uint32_t i = 0; i < q->nb_snapshots && !r; i++)
		r = add_snapshot(info, &q->snapshots[i]);
	if (!r && q->backing_name && *q->backing_name) {
		info->backing_filename = strdup(q->backing_name);
		r = info->backing_filename ? 0 : -1;
	}
	if (!r && info->backing_filename && q->backing_format) {
		info->backing_filename_format = strdup(q->backing_format);
		r = info->backing_filename_format ? 0 : -1;
	}
	return r ? error_set(errp, "Cannot allocate memory") : 0;
}
