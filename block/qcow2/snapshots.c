/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/snapshots.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/io.h"
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

/* Read entry i at *off of the file, and move *off behind it. */
static int
read_entry(struct qcow2 *q, uint32_t i, uint64_t *off, struct error **errp)
{
	struct qcow2_snapshot *s = &q->snapshots[i];
	CLEANUP(cleanup_free) uint8_t *rest = NULL;
	uint32_t id_len, name_len, extra_len;
	uint8_t head[HEAD];
	size_t len;
	int r;

	*off = round_up(*off, 8);
	r = node_pread(qcow2_file(q), *off, head, sizeof(head));
	if (r < 0)
		return error_set_errno(errp, r, "Failed to read snapshot table"), -1;
	id_len = get_be16(head + 12);
	name_len = get_be16(head + 14);
	extra_len = get_be32(head + 36);
	if (extra_len > EXTRA_MAX)
		return error_set(errp, "Too much extra metadata in snapshot table entry %u", i);
	len = (size_t)extra_len + id_len + name_len;
	rest = malloc(len + 1);
	if (!rest)
		return error_set(errp, "Out of memory for the snapshot table");
	r = node_pread(qcow2_file(q), *off + HEAD, rest, len);
	if (r < 0)
		return error_set_errno(errp, r, "Failed to read snapshot table"), -1;
	decode(s, head, rest, extra_len, q->header.size);
	s->id = string(rest + extra_len, id_len);
	s->name = string(rest + extra_len + id_len, name_len);
	if (!s->id || !s->name)
		return error_set(errp, "Out of memory for the snapshot table");
	*off += HEAD + len;
	if (*off - q->header.snapshots_off > TABLE_MAX)
		return error_set(errp, "Snapshot table is too big");
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
		if (read_entry(q, i, &off, errp)) {
			qcow2_snapshots_done(q);
			return -1;
		}
	}
	q->snapshots_len = off - q->header.snapshots_off;
	return 0;
}

void
qcow2_snapshots_done(struct qcow2 *q)
{
	for (uint32_t i = 0; i < q->nb_snapshots; i++) {
		free(q->snapshots[i].id);
		free(q->snapshots[i].name);
	}
	free(q->snapshots);
	q->snapshots = NULL;
	q->nb_snapshots = 0;
}
