/* SPDX-License-Identifier: Apache-2.0 */
#include "aio/place.h"

#include <sys/stat.h>
#include <sys/vfs.h>

#include "aio/disk.h"
#include "aio/timer.h"
#include "base/cleanup.h"

/* What counts is the mean of the last calls, each without 1 ns a byte.  One
 * long call alone does not make it SLOW_NS, since what took long may have been
 * another program on this core.  What is slow is done elsewhere for a while,
 * and for twice as long if it is slow again at the first try. */
enum {
	MEAN_OF		= 32,
	LONGEST_NS	= 4 * 1000 * 1000,	/* that a call counts for */
	SLOW_NS		= 150 * 1000,
	PROBATION_NS	= 140 * 1000,		/* the mean to begin with afterwards */
	AWAY_MIN_NS	= 10 * 1000 * 1000,
	AWAY_MAX_NS	= 1000 * 1000 * 1000,
};

/* By fd, for all threads; those beyond are served without. */
enum { FDS_MAX = 4096 };
static struct place places[FDS_MAX];

/* File systems whose calls wait for a disk at most. */
static const unsigned long local_types[] = {
	0xef53,		/* ext2, ext3, ext4 */
	0x58465342,	/* xfs */
	0x9123683e,	/* btrfs */
	0x01021994,	/* tmpfs */
	0xf2f52010,	/* f2fs */
	0x2fc12fc1,	/* zfs */
	0xca451a4e,	/* bcachefs */
};

struct place *
place_of(int fd)
{
	return fd >= 0 && fd < FDS_MAX ? &places[fd] : NULL;
}

static bool
is_local(int fd)
{
	struct statfs fs;
	struct stat st;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || fstatfs(fd, &fs) < 0)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(local_types); i++)
		if ((unsigned long)fs.f_type == local_types[i])
			return true;
	return false;
}

static void
pace_reset(struct pace *p)
{
	atomic_store(&p->away_until, 0);
	atomic_store(&p->away_ns, 0);
	atomic_store(&p->mean_ns, 0);
}

void
disk_opened(int fd)
{
	struct place *p = place_of(fd);

	if (!p)
		return;
	pace_reset(&p->read);
	pace_reset(&p->write);
	pace_reset(&p->seek);
	atomic_store(&p->no_nowait_read, false);
	atomic_store(&p->no_nowait_write, false);
	atomic_store(&p->local, is_local(fd));
}

static int64_t
get(const _Atomic int64_t *v)
{
	return atomic_load_explicit(v, memory_order_relaxed);
}

static void
put(_Atomic int64_t *v, int64_t value)
{
	atomic_store_explicit(v, value, memory_order_relaxed);
}

void
place_took(struct pace *p, int64_t start, size_t bytes)
{
	int64_t now = clock_ns(), took = now - start - (int64_t)bytes;
	int64_t mean = get(&p->mean_ns), away = get(&p->away_ns);

	took = took < 0 ? 0 : took > LONGEST_NS ? LONGEST_NS : took;
	mean += (took - mean) / MEAN_OF;
	if (mean > SLOW_NS) {
		mean = PROBATION_NS;
		away = away ? away * 2 : AWAY_MIN_NS;
		if (away > AWAY_MAX_NS)
			away = AWAY_MAX_NS;
		put(&p->away_ns, away);
		put(&p->away_until, now + away);
	} else if (away && mean < SLOW_NS / 2) {
		put(&p->away_ns, 0);
	}
	put(&p->mean_ns, mean);
}
