/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/snapshots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/io.h"
#include "block/open.h"
#include "block/qcow2/qcow2.h"

enum {
	HEAD = 40,			/* bytes of an entry before what varies */
	EXTRA_MAX = 1024,
	EXTRA_KNOWN = 24,		/* VM state's size, disk's size, icount */
	TABLE_MAX = 64 << 20,
};

static char *
string(const uint8_t *from, size_t len)
{
	char *s = malloc(len + 1);

	if (s) {
		memcpy(s, from, len);
		s[len] = '\0';
	}
	return s;
}

static void
decode(struct qcow2_snapshot *s, const uint8_t *head, const uint8_t *extra, size_t extra_len,
       uint64_t disk_size)
{
	s->l1_off = get_be64(head);
	s->l1_size = get_be32(head + 8);
	s->date_sec = get_be32(head + 16);
	s->date_nsec = get_be32(head + 20);
	s->vm_clock_nsec = get_be64(head + 24);
	s->vm_state_size = extra_len >= 8 ? get_be64(extra) : get_be32(head + 32);
	s->disk_size = extra_len >= 16 ? get_be64(extra + 8) : disk_size;
	s->icount = extra_len >= 24 ? get_be64(extra + 16) : UINT64_MAX;
}

/* Where the parts of an entry end. */
struct shape {
	uint32_t id_len, name_len, extra_len;
};

static struct shape
shape_of(const uint8_t *head)
{
	return (struct shape){ .id_len = get_be16(head + 12), .name_len = get_be16(head + 14),
			       .extra_len = get_be32(head + 36) };
}

int
qcow2_snapshot_adopt(struct qcow2_snapshot *s, uint8_t *entry, uint64_t disk_size)
{
	const uint8_t *extra = entry + HEAD;
	struct shape p = shape_of(entry);

	decode(s, entry, extra, p.extra_len, disk_size);
	s->entry = entry;
	s->entry_len = HEAD + (size_t)p.extra_len + p.id_len + p.name_len;
	s->id = string(extra + p.extra_len, p.id_len);
	s->name = string(extra + p.extra_len + p.id_len, p.name_len);
	return s->id && s->name ? 0 : -ENOMEM;
}

/* Read entry i at *off of the file into s, which is zero and is to be done also on
 * failure, and move *off behind it. */
static int
read_entry(struct qcow2 *q, uint32_t i, uint64_t *off, struct qcow2_snapshot *s,
	   struct error **errp)
{
	uint8_t head[HEAD], *entry;
	struct shape p;
	size_t len;
	int r;

	*off = round_up(*off, 8);
	r = node_pread(qcow2_file(q), *off, head, sizeof(head));
	if (r < 0)
		return error_set_errno(errp, r, "Failed to read snapshot table"), -1;
	p = shape_of(head);
	if (p.extra_len > EXTRA_MAX)
		return error_set(errp, "Too much extra metadata in snapshot table entry %u", i);
	len = HEAD + (size_t)p.extra_len + p.id_len + p.name_len;
	entry = malloc(len);
	if (!entry)
		return error_set(errp, "Out of memory for the snapshot table");
	memcpy(entry, head, HEAD);
	r = node_pread(qcow2_file(q), *off + HEAD, entry + HEAD, len - HEAD);
	if (r < 0) {
		free(entry);
		return error_set_errno(errp, r, "Failed to read snapshot table"), -1;
	}
	if (qcow2_snapshot_adopt(s, entry, q->header.size))
		return error_set(errp, "Out of memory for the snapshot table");
	*off += len;
	if (*off - q->header.snapshots_off > TABLE_MAX)
		return error_set(errp, "Snapshot table is too big");
	return 0;
}

int
qcow2_snapshot_check(const struct qcow2 *q, const struct qcow2_snapshot *s, struct error **errp)
{
	return qcow2_table_check(s->l1_off, s->l1_size, 8, QCOW2_L1_MAX, q->cluster_bits,
				 "Snapshot L1 table", errp);
}

int
qcow2_snapshots_read(struct qcow2 *q, struct error **errp)
{
	uint64_t off = q->header.snapshots_off;

	if (!q->header.nb_snapshots)
		return 0;
	q->snapshots = calloc(q->header.nb_snapshots, sizeof(*q->snapshots));
	if (!q->snapshots)
		return error_set(errp, "Out of memory for the snapshot table");
	q->nb_snapshots = q->header.nb_snapshots;
	for (uint32_t i = 0; i < q->nb_snapshots; i++) {
		if (read_entry(q, i, &off, &q->snapshots[i], errp)) {
			qcow2_snapshots_done(q);
			return -1;
		}
	}
	q->snapshots_len = off - q->header.snapshots_off;
	return 0;
}

int
qcow2_snapshots_find(struct qcow2 *q, const struct open_snapshot *want,
		     struct qcow2_snapshot *ret, struct error **errp)
{
	uint64_t off = q->header.snapshots_off;

	for (uint32_t i = 0; i < q->header.nb_snapshots; i++) {
		struct qcow2_snapshot s = { .entry = NULL };
		int r = read_entry(q, i, &off, &s, errp);

		if (r == 0 && !strcmp(s.id, want->id) && !strcmp(s.name, want->name)) {
			*ret = s;
			return 0;
		}
		qcow2_snapshot_done(&s);
		if (r < 0)
			return -1;
	}
	return error_set(errp, "Can't find the snapshot");
}

void
qcow2_snapshots_done(struct qcow2 *q)
{
	for (uint32_t i = 0; i < q->nb_snapshots; i++)
		qcow2_snapshot_done(&q->snapshots[i]);
	free(q->snapshots);
	q->snapshots = NULL;
	q->nb_snapshots = 0;
}

void
qcow2_snapshot_done(struct qcow2_snapshot *s)
{
	free(s->id);
	free(s->name);
	free(s->entry);
	free(s->l1);
	memset(s, 0, sizeof(*s));
}

int
qcow2_snapshot_init(struct qcow2_snapshot *s, const char *id, const char *name)
{
	struct shape p = { .id_len = (uint32_t)strlen(id), .name_len = (uint32_t)strlen(name),
			   .extra_len = EXTRA_KNOWN };
	uint8_t *entry = calloc(1, HEAD + EXTRA_KNOWN + p.id_len + p.name_len), *extra;

	if (!entry)
		return -ENOMEM;
	extra = entry + HEAD;
	put_be64(entry, s->l1_off);
	put_be32(entry + 8, s->l1_size);
	put_be16(entry + 12, (uint16_t)p.id_len);
	put_be16(entry + 14, (uint16_t)p.name_len);
	put_be32(entry + 16, s->date_sec);
	put_be32(entry + 20, s->date_nsec);
	put_be64(entry + 24, s->vm_clock_nsec);
	put_be32(entry + 32, s->vm_state_size > UINT32_MAX ? 0 : (uint32_t)s->vm_state_size);
	put_be32(entry + 36, p.extra_len);
	put_be64(extra, s->vm_state_size);
	put_be64(extra + 8, s->disk_size);
	put_be64(extra + 16, s->icount);
	memcpy(extra + p.extra_len, id, p.id_len);
	memcpy(extra + p.extra_len + p.id_len, name, p.name_len);
	return qcow2_snapshot_adopt(s, entry, s->disk_size);
}

int
qcow2_snapshots_encode(const struct qcow2_snapshot *s, uint32_t n, uint8_t **ret_table,
		       uint64_t *ret_len)
{
	uint64_t len = 0, off = 0;
	uint8_t *table;

	for (uint32_t i = 0; i < n; i++)
		len = round_up(len, 8) + s[i].entry_len;
	if (len > TABLE_MAX)
		return -EFBIG;
	table = calloc(1, len + 1);
	if (!table)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		off = round_up(off, 8);
		memcpy(table + off, s[i].entry, s[i].entry_len);
		off += s[i].entry_len;
	}
	*ret_table = table;
	*ret_len = len;
	return 0;
}
