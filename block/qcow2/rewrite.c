/* SPDX-License-Identifier: Apache-2.0 */
/* A power cut may tear a write between sectors, so a change of the header is one
 * sector: the header, the extensions and their end mark have to fit in it, for which
 * the feature name table, a help for other programs' messages, gives way.  A backing
 * file's name that has no room there too is written first, behind all that the header
 * on disk has. */
#include "block/qcow2/rewrite.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
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
	size_t n = h->header_len, known, used;

	if (n >= SECTOR)
		return 0;
	known = min_u64(qcow2_header_encode(h, head), QCOW2_HEADER_KNOWN);
	memcpy(sector, head, known);
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

/* Where the name goes: into the sector, or behind it, beside the old name and the old
 * extensions. */
static int
find_place(struct qcow2 *q, size_t used, struct name *name)
{
	uint64_t old = q->header.backing_off, old_end = old + q->header.backing_len;

	if (used + name->len <= SECTOR) {
		name->off = used;
		return 0;
	}
	name->off = max_u64(SECTOR, round_up(q->exts.end, 8));
	if (old && old_end > name->off && old < name->off + name->len)
		name->off = round_up(old_end, 8);
	return name->off + name->len <= q->cluster_size ? 0 : -ENOSPC;
}

int
qcow2_rewrite_header(struct qcow2 *q, struct qcow2_header *h, const char *backing,
		     bool *ret_tried)
{
	struct name n = { .file = backing, .len = backing ? strlen(backing) : 0 }, *name = &n;
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
	if (r < 0)
		return r;
	if (ret_tried)
		*ret_tried = true;
	r = qcow2_write_field(q, 0, sector, SECTOR);
	if (!r)
		q->exts.end = used;
	return r;
}
