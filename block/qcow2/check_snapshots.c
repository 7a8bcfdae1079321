/* SPDX-License-Identifier: Apache-2.0 */
/* Reading the snapshot table, which may be broken, counting what the internal
 * snapshots refer to, and writing the table anew. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/io.h"
#include "block/qcow2/check_int.h"
#include "block/qcow2/checkpoint.h"
#include "block/qcow2/snapshots.h"

enum {
	HEAD = 40,			/* bytes of an entry before what varies */
	EXTRA_MAX = 1024,
	EXTRA_NEEDED = 16,		/* in version 3 */
	TABLE_MAX = 64 << 20,
};

/* ---- reading ---- */

static int
unreadable(struct qcow2_checker *c, int err, const char *text)
{
	c->snapshots.errors++;
	qcow2_check_say(c, "ERROR failed to read the snapshot table: %s", text);
	return err;
}

/* The entry at off with what varies, of which extra may be longer than what is kept;
 * head is its beginning. */
static uint8_t *
load_entry(struct qcow2 *q, uint64_t off, const uint8_t *head, uint32_t keep)
{
	uint32_t extra = get_be32(head + 36);
	size_t names = (size_t)get_be16(head + 12) + get_be16(head + 14);
	uint8_t *entry = malloc(HEAD + keep + names);

	if (!entry)
		return NULL;
	memcpy(entry, head, HEAD);
	put_be32(entry + 36, keep);
	if (node_pread(qcow2_file(q), off + HEAD, entry + HEAD, keep) < 0 ||
	    node_pread(qcow2_file(q), off + HEAD + extra, entry + HEAD + keep, names) < 0) {
		free(entry);
		return NULL;
	}
	return entry;
}

/* Entry i at *off; moves *off behind it. */
static int
read_entry(struct qcow2_checker *c, uint32_t i, uint64_t *off)
{
	struct qcow2 *q = c->q;
	uint8_t head[HEAD], *entry;
	uint32_t extra;

	if (node_pread(qcow2_file(q), *off, head, sizeof(head)) < 0)
		return unreadable(c, -EIO, "Failed to read snapshot table: Input/output error");
	extra = get_be32(head + 36);
	if (extra > EXTRA_MAX && !(c->fix & CHECK_FIX_ERRORS)) {
		c->snapshots.errors++;
		qcow2_check_say(c, "ERROR failed to read the snapshot table: Too much extra "
				   "metadata in snapshot table entry %u", i);
		qcow2_check_say(c, "You can force-remove this extra metadata with qemu-img check "
				   "-r all");
		return -EFBIG;
	}
	if (extra > EXTRA_MAX) {
		qcow2_check_say(c, "Discarding too much extra metadata in snapshot table entry %u "
				   "(%" PRIu32 " > %u)", i, extra, EXTRA_MAX);
		c->snapshots.corruptions++;
	}
	entry = load_entry(q, *off, head, (uint32_t)min_u64(extra, EXTRA_MAX));
	if (!entry || qcow2_snapshot_adopt(&q->snapshots[i], entry, q->header.size))
		return unreadable(c, -EIO, "Failed to read snapshot table: Input/output error");
	*off += HEAD + (uint64_t)extra + get_be16(head + 12) + get_be16(head + 14);
	return 0;
}

/* Entry i, and those behind it, are too much for the table. */
static int
drop_rest(struct qcow2_checker *c, uint32_t i)
{
	struct qcow2 *q = c->q;
	uint32_t n = q->nb_snapshots - i;

	if (!(c->fix & CHECK_FIX_ERRORS)) {
		(void)unreadable(c, -EFBIG, "Snapshot table is too big");
		qcow2_check_say(c, "You can force-remove all %u overhanging snapshots with qemu-img "
				   "check -r all", n);
		return -EFBIG;
	}
	qcow2_check_say(c, "Discarding %u overhanging snapshots (snapshot table is too big)", n);
	c->snapshots.corruptions += n;
	for (uint32_t k = i; k < q->nb_snapshots; k++)
		qcow2_snapshot_done(&q->snapshots[k]);
	q->nb_snapshots = i;
	return 0;
}

static int
read_entries(struct qcow2_checker *c)
{
	struct qcow2 *q = c->q;
	uint64_t start = q->header.snapshots_off, off = start, before;
	int r = 0;

	q->nb_snapshots = q->header.nb_snapshots;
	q->snapshots_len = 0;
	q->snapshots = calloc((size_t)q->nb_snapshots + 1, sizeof(*q->snapshots));
	if (!q->snapshots) {
		q->nb_snapshots = 0;
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < q->nb_snapshots && !r; i++) {
		before = q->snapshots_len;
		off = round_up(off, 8);
		r = read_entry(c, i, &off);
		q->snapshots_len = off - start;
		if (!r && q->snapshots_len > TABLE_MAX) {
			q->snapshots_len = before;
			r = drop_rest(c, i);
		}
	}
	return r;
}

/* Too many, or in an impossible place? */
static int
check_pointer(struct qcow2_checker *c)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct qcow2_header *h = &c->q->header;
	uint32_t n = h->nb_snapshots;

	if (n > QCOW2_SNAPSHOTS_MAX && (c->fix & CHECK_FIX_ERRORS)) {
		qcow2_check_say(c, "Discarding %u overhanging snapshots", n - QCOW2_SNAPSHOTS_MAX);
		c->snapshots.corruptions += n - QCOW2_SNAPSHOTS_MAX;
		h->nb_snapshots = QCOW2_SNAPSHOTS_MAX;
	}
	if (!qcow2_table_check(h->snapshots_off, h->nb_snapshots, HEAD, HEAD * QCOW2_SNAPSHOTS_MAX,
			       c->q->cluster_bits, "snapshot table", &err))
		return 0;
	c->snapshots.errors++;
	qcow2_check_say(c, "ERROR %s", error_text(err));
	if (h->nb_snapshots > QCOW2_SNAPSHOTS_MAX)
		qcow2_check_say(c, "You can force-remove all %u overhanging snapshots with qemu-img "
				   "check -r all", n - QCOW2_SNAPSHOTS_MAX);
	return n > QCOW2_SNAPSHOTS_MAX ? -EFBIG : -EINVAL;
}

/* Those dropped go from the header before anything that they led to is given back;
 * `had` is what it says. */
static int
shorten(struct qcow2_checker *c, uint32_t had)
{
	struct qcow2 *q = c->q;
	uint32_t dropped = had - q->nb_snapshots;
	uint8_t field[4];
	int r;

	if (!dropped)
		return 0;
	put_be32(field, q->nb_snapshots);
	co_mutex_lock(&q->checkpoint);
	r = qcow2_write_field(q, QCOW2_OFF_SNAPSHOTS, field, sizeof(field));
	co_mutex_unlock(&q->checkpoint);
	if (r < 0) {
		c->snapshots.errors++;
		qcow2_check_say(c, "ERROR failed to update the snapshot count in the image header: "
				   "%s", strerror(-r));
		return r;
	}
	q->header.nb_snapshots = q->nb_snapshots;
	c->snapshots.corruptions -= dropped;
	c->snapshots.corruptions_fixed += dropped;
	return 0;
}

/* An entry that lacks what version 3 wants gets it. */
static int
complete(struct qcow2_checker *c, uint32_t i)
{
	struct qcow2_snapshot *s = &c->q->snapshots[i], whole = *s;
	int r;

	if (c->q->version < 3 || get_be32(s->entry + 36) >= EXTRA_NEEDED)
		return 0;
	c->snapshots.corruptions++;
	qcow2_check_say(c, "%s snapshot table entry %u is incomplete",
			qcow2_check_verb(c, CHECK_FIX_ERRORS), i);
	if (!(c->fix & CHECK_FIX_ERRORS))
		return 0;
	whole.id = whole.name = NULL;
	whole.entry = NULL;
	r = qcow2_snapshot_init(&whole, s->id, s->name);
	if (r < 0) {
		qcow2_snapshot_done(&whole);
		return r;
	}
	qcow2_snapshot_done(s);
	*s = whole;
	return 0;
}

int
qcow2_check_read_snapshots(struct qcow2_checker *c)
{
	struct qcow2 *q = c->q;
	uint32_t had = q->header.nb_snapshots;
	int r;

	if (!q->checking)
		return 0;	/* they were read and judged at open */
	qcow2_snapshots_done(q);
	r = check_pointer(c);
	if (!r)
		r = read_entries(c);
	if (!r)
		r = shorten(c, had);
	for (uint32_t i = 0; i < q->nb_snapshots && !r; i++)
		r = complete(c, i);
	if (r < 0)
		qcow2_snapshots_done(q);
	return r;
}

int
qcow2_check_write_snapshots(struct qcow2_checker *c)
{
	int r;

	if (!c->snapshots.corruptions || !(c->fix & CHECK_FIX_ERRORS))
		return 0;
	/* Where counts are wrong there is no knowing what is free. */
	if (c->result->corruptions || c->result->errors)
		return 0;
	r = qcow2_snapshots_rewrite(c->q);
	if (r < 0) {
		c->snapshots.errors++;
		qcow2_check_say(c, "ERROR failed to update snapshot table: %s", strerror(-r));
		return r;
	}
	c->snapshots.corruptions_fixed += c->snapshots.corruptions;
	c->snapshots.corruptions = 0;
	return 0;
}

/* ---- counting ---- */

static int
check_snapshot(struct qcow2_checker *c, const struct qcow2_snapshot *s)
{
	if (!is_aligned(s->l1_off, c->q->cluster_size)) {
		qcow2_check_say(c, "ERROR snapshot %s (%s) l1_offset=0x%" PRIx64 ": L1 table is not "
				   "cluster aligned; snapshot table entry corrupted",
				s->id, s->name, s->l1_off);
		c->result->corruptions++;
		return 0;
	}
	if (s->l1_size > QCOW2_L1_MAX / 8) {
		qcow2_check_say(c, "ERROR snapshot %s (%s) l1_size=0x%" PRIx32 ": L1 table is too "
				   "large; snapshot table entry corrupted",
				s->id, s->name, s->l1_size);
		c->result->corruptions++;
		return 0;
	}
	return qcow2_check_inactive(c, s->l1_off, s->l1_size);
}

int
qcow2_check_snapshots(struct qcow2_checker *c)
{
	const struct qcow2 *q = c->q;
	int r = 0;

	/* A data file has one state only. */
	if (q->external_data && q->nb_snapshots) {
		qcow2_check_say(c, "ERROR %" PRIu32 " snapshots in image with data file",
				q->nb_snapshots);
		c->result->corruptions++;
	}
	for (uint32_t i = 0; i < q->nb_snapshots && !r; i++)
		r = check_snapshot(c, &q->snapshots[i]);
	if (!r && q->nb_snapshots)
		r = qcow2_check_count(c, q->header.snapshots_off, q->snapshots_len);
	return r;
}
