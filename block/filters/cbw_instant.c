/* SPDX-License-Identifier: Apache-2.0 */
/* Reading what the disk held at the instant that copy-before-write keeps.
 *
 * A reader claims the clusters that he reads, beside other readers.  Who changes a
 * cluster first copies it, under an exclusive claim, and so waits for its readers:
 * a cluster that is in the set stays what it was until they are done.  A piece is
 * claimed at a time, so that is not long.
 *
 * Once the filter is broken or stopped, writes pass without a claim.  But that is
 * noted before the first one begins, so a reader who finds no such note behind his
 * read has not seen any. */
#include <errno.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/filters/cbw_int.h"

/* A stretch of old content, and who has it. */
struct stretch {
	uint64_t len;
	struct node *holder;
};

static void
claim_clusters(struct cbw *s, struct claim *c, uint64_t off, uint64_t len, bool exclusive)
{
	uint64_t start = round_down(off, s->cluster);

	ranges_claim(&s->copying, c, start, round_up(off + len, s->cluster) - start, exclusive);
}

static bool
is_lost(struct cbw *s)
{
	return atomic_load(&s->broken) || atomic_load(&s->stopped);
}

/* Is all of [off, off + len) known? */
static bool
is_known(struct cbw *s, uint64_t off, uint64_t len)
{
	uint64_t at, run;

	return range_within(off, len, bitmap_size(s->known)) &&
	       bitmap_next(s->known, off, off + len, &at, &run) && at == off && run == len;
}

/* The first stretch of [off, off + len), whose clusters are claimed. */
static int
find(struct node *n, uint64_t off, uint64_t len, struct stretch *ret)
{
	struct cbw *s = n->state;
	uint64_t at, run;
	int err = 0;

	pthread_mutex_lock(&s->lock);
	if (is_lost(s) || !is_known(s, off, len))
		err = -EACCES;
	else if (!bitmap_next(s->todo, off, off + len, &at, &run))
		*ret = (struct stretch){ len, s->target->child };
	else if (at > off)
		*ret = (struct stretch){ at - off, s->target->child };
	else
		*ret = (struct stretch){ run, n->file->child };
	pthread_mutex_unlock(&s->lock);
	return err;
}

static int
read_stretch(struct node *n, uint64_t off, const struct iov *dst, size_t pos, size_t *ret_len)
{
	struct stretch x;
	struct iov_part part;
	int err = find(n, off + pos, *ret_len, &x);

	if (err)
		return err;
	err = iov_part(&part, dst, pos, x.len);
	if (!err)
		err = node_read(x.holder, off + pos, &part.iov);
	iov_part_done(&part);
	if (is_lost(n->state))
		return -EACCES;
	*ret_len = x.len;
	return err;
}

static int
instant_read(struct node *n, uint64_t off, const struct iov *dst)
{
	struct cbw *s = n->state;
	struct claim claim;
	size_t pos = 0, len;
	int err = 0;

	for (; pos < dst->len && !err; pos += len) {
		len = min_u64(dst->len - pos, max_u64(CBW_PIECE_MAX, s->cluster));
		claim_clusters(s, &claim, off + pos, len, false);
		err = read_stretch(n, off, dst, pos, &len);
		ranges_release(&s->copying, &claim);
	}
	return err;
}

static int
instant_status(struct node *n, uint64_t off, uint64_t len, bool want_zero,
	       struct extent *ret_extent)
{
	struct cbw *s = n->state;
	struct claim claim;
	struct stretch x;
	int err;

	claim_clusters(s, &claim, off, len, false);
	err = find(n, off, len, &x);
	if (!err)
		err = node_status_above(x.holder, NULL, off, x.len, want_zero, ret_extent);
	ranges_release(&s->copying, &claim);
	return is_lost(s) ? -EACCES : err;
}

/* Whole clusters only, which nobody wants to read any more: they need not be kept,
 * and what was kept may go. */
static int
instant_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct cbw *s = n->state;
	uint64_t start = round_up(off, s->cluster), stop = round_down(off + len, s->cluster);
	struct claim claim;
	int err;

	if (start >= stop || stop > bitmap_size(s->known))
		return 0;
	/* Not under the eyes of a reader: behind the target may lie the source. */
	claim_clusters(s, &claim, start, stop - start, true);
	pthread_mutex_lock(&s->lock);
	bitmap_clear(s->known, start, stop - start);
	bitmap_clear(s->todo, start, stop - start);
	pthread_mutex_unlock(&s->lock);
	err = node_discard(s->target->child, start, stop - start);
	ranges_release(&s->copying, &claim);
	return err;
}

const struct instant_ops cbw_instant_ops = {
	.read = instant_read,
	.status = instant_status,
	.discard = instant_discard,
};
