/* SPDX-License-Identifier: Apache-2.0 */
/* Writing another backing file's name and format into the header.
 *
 * A power cut may tear a write between sectors, so the change is one sector: the
 * header, the extensions and their end mark have to fit in it, for which the
 * feature name table, a help for other programs' messages, gives way.  A name
 * that has no room there too is written behind it first, where nothing is. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/io.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/qcow2.h"

enum { SECTOR = 512 };

/* What will stand in the header. */
struct name {
	const char *file;
	size_t len;
	uint64_t off;		/* 0: none */
};

/* Lay out header and extensions in sector, which holds what is there now: fields
 * that nobody here knows stay.  How far it goes, or 0. */
static size_t
encode(struct qcow2 *q, struct qcow2_header *h, uint8_t *sector)
{
	uint8_t head[QCOW2_HEADER_MAX];
	size_t n = h->header_len, used;

	if (n >= SECTOR)
		return 0;
	memcpy(sector, head, min_u64(qcow2_header_encode(h, head), QCOW2_HEADER_KNOWN));
	memset(sector + n, 0, SECTOR - n);
	used = qcow2_ext_encode(&q->exts, sector + n, SECTOR - n);
	if (!used) {
		if (qcow2_ext_set(&q->exts, QCOW2_EXT_FEATURE_TABLE, NULL, 0))
			return 0;
		q->exts.features = NULL;
		used = qcow2_ext_encode(&q->exts, sector + n, SECTOR - n);
	}
	return used ? n + used : 0;
}

/* Where the name goes: into the sector, or behind it beside the old name. */
static int
find_place(struct qcow2 *q, size_t used, struct name *name)
{
	uint64_t old = q->header.backing_off, old_end = old + q->header.backing_len;

	if (used + name->len <= SECTOR) {
		name->off = used;
		return 0;
	}
	name->off = SECTOR;
	if (old && old_end > SECTOR && old < SECTOR + name->len)
		name->off = round_up(old_end, 8);
	return name->off + name->len <= q->cluster_size ? 0 : -ENOSPC;
}

static int
rewrite(struct qcow2 *q, struct qcow2_header *h, struct name *name)
{
	uint8_t sector[SECTOR];
	size_t used;
	int r = node_pread(qcow2_file(q), 0, sector, SECTOR);

	if (r < 0)
		return r;
	used = encode(q, h, sector);
	if (!used)
		return -ENOSPC;
	if (name->file)
		r = find_place(q, used, name);
	if (r < 0)
		return r;
	h->backing_off = name->off;
	h->backing_len = (uint32_t)name->len;
	used = encode(q, h, sector);
	if (name->file && name->off < SECTOR)
		memcpy(sector + name->off, name->file, name->len);
	else if (name->file)
		r = node_pwrite(qcow2_file(q), name->off, name->file, name->len);
	return r < 0 ? r : qcow2_write_field(q, 0, sector, SECTOR);
}

int
qcow2_change_backing(struct node *n, const char *file, const char *fmt, struct error **errp)
{
	struct qcow2 *q = n->state;
	CLEANUP(cleanup_free) char *new_file = file ? strdup(file) : NULL;
	CLEANUP(cleanup_free) char *new_fmt = file && fmt ? strdup(fmt) : NULL;
	struct name name = { .file = file, .len = file ? strlen(file) : 0 };
	struct qcow2_header h;
	int r;

	if ((file && !new_file) || (file && fmt && !new_fmt))
		return error_set(errp, "Cannot allocate memory");
	if (name.len > QCOW2_BACKING_MAX || (fmt && strlen(fmt) > QCOW2_EXT_FORMAT_MAX))
		return error_set(errp, "Backing file name too long");
	co_mutex_lock(&q->checkpoint);
	h = q->header;
	r = qcow2_ext_set(&q->exts, QCOW2_EXT_BACKING_FORMAT, new_fmt,
			  new_fmt ? (uint32_t)strlen(new_fmt) : 0);
	if (!r)
		r = rewrite(q, &h, &name);
	if (!r) {
		char *old_file = q->backing_name, *old_fmt = q->backing_format;

		qcow2_lock(q);
		q->header.backing_off = h.backing_off;
		q->header.backing_len = h.backing_len;
		qcow2_unlock(q);
		q->backing_name = STEAL(new_file);
		q->backing_format = STEAL(new_fmt);
		free(old_file);
		free(old_fmt);
	} else {	/* the header still says the old one */
		(void)qcow2_ext_set(&q->exts, QCOW2_EXT_BACKING_FORMAT, q->backing_format,
				    q->backing_format ? (uint32_t)strlen(q->backing_format) : 0);
	}
	co_mutex_unlock(&q->checkpoint);
	if (r == -ENOSPC)
		return error_set(errp, "No space left in the file header");
	return r < 0 ? (error_set_errno(errp, r, "Could not update qcow2 header"), -1) : 0;
}
