/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/layer.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/io.h"
#include "block/node.h"
#include "block/open.h"
#include "rescue/cipher.h"
#include "rescue/damage.h"
#include "rescue/judge.h"
#include "rescue/mixed.h"

enum {
	UNIT = 4096,			/* bytes that are sampled at one place */
	UNIT_SECTORS = UNIT / 512,
	UNITS_MAX = JUDGE_SAMPLES / UNIT_SECTORS,
	STATUS_MAX = 1 << 30,
	WALK_MAX = 1 << 24,		/* pieces of a disk that are looked up for a sample */
};

/* ---- the decryptor ---- */

static void
capture(struct layer_capture *to, uint64_t guest, uint64_t host, const uint8_t *buf, size_t len)
{
	for (size_t at = 0; at < len; at += 512) {
		uint64_t sector = (guest + at) / 512;

		if (sector < to->first || sector - to->first >= to->count)
			continue;
		memcpy(to->data[sector - to->first], buf + at, 512);
		to->file[sector - to->first] = (host + at) / 512;
		to->have[sector - to->first] = true;
	}
}

/* Each part of it as it was found to be stored. */
static void
decrypt_mixed(const struct layer *l, uint64_t guest, uint64_t host, uint8_t *buf, size_t len)
{
	for (size_t at = 0, n; at < len; at += n) {
		enum mixed_reading how;

		n = len - at;
		how = mixed_find(l->mixed, guest + at, &n);
		if (how != MIXED_PLAIN)
			cipher_decrypt(l->cipher, ((how == MIXED_FILE_IV ? host : guest) + at) /
				       CIPHER_SECTOR, buf + at, n);
	}
}

static void
suspect(struct layer *l, uint64_t guest)
{
	uint64_t first = atomic_load(&l->first_suspect);

	while (guest < first &&
	       !atomic_compare_exchange_weak(&l->first_suspect, &first, guest))
		;
	atomic_fetch_add(&l->suspects, 1);
}

/* As usual, but count what seems to be stored otherwise. */
static void
decrypt_watching(struct layer *l, uint64_t guest, uint64_t host, uint8_t *buf, size_t len)
{
	for (size_t at = 0; at < len; at += CIPHER_SECTOR)
		if (mixed_seems_plain(buf + at))
			suspect(l, guest + at);
	cipher_decrypt(l->cipher, guest / CIPHER_SECTOR, buf, len);
	for (size_t at = 0; at < len; at += CIPHER_SECTOR)
		if (mixed_seems_zero(buf + at, (guest + at) / CIPHER_SECTOR ^
					       (host + at) / CIPHER_SECTOR))
			suspect(l, guest + at);
}

static bool
is_file(const struct image *im, const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && st.st_dev == im->dev && st.st_ino == im->ino;
}

static int
decryptor_unlock(void *user, const struct crypt_layer *crypt, void **ret_key,
		 struct error **errp)
{
	struct layers *all = user;

	for (unsigned i = 0; i < all->count; i++) {
		struct layer *l = &all->layer[i];

		if (l->image->encryption == crypt->kind && is_file(l->image, crypt->filename)) {
			l->file = crypt->file;
			l->header = crypt->header_offset;
			l->header_len = crypt->header_length;
			*ret_key = l;
			return 0;
		}
	}
	return error_set(errp, "%s was changed while it was looked at", crypt->filename);
}

static int
decryptor_decrypt(void *key, uint64_t guest, uint64_t host, void *buf, size_t len)
{
	struct layer *l = key;
	/* The one kind that counts sectors in the file and not on the disk. */
	uint64_t at = l->image->encryption == CIPHER_QCOW2_LUKS ? host : guest;

	/* A file that was cut off reads as zeroes behind its end, which would become
	 * noise. */
	if (l->stored && round_down(host + len - 1, CIPHER_SECTOR) >= node_size(l->stored))
		return -ENODATA;
	if (l->capture)
		capture(l->capture, guest, host, buf, len);
	else if (l->mixed)
		decrypt_mixed(l, guest, host, buf, len);
	else if (l->watch)
		decrypt_watching(l, guest, host, buf, len);
	else if (l->cipher)
		cipher_decrypt(l->cipher, at / CIPHER_SECTOR, buf, len);
	else
		return -EACCES;
	return 0;
}

static void
decryptor_forget(void *key)
{
	struct layer *l = key;

	l->node = l->stored = l->file = NULL;
}

const struct decryptor layer_decryptor = {
	.unlock = decryptor_unlock,
	.decrypt = decryptor_decrypt,
	.forget = decryptor_forget,
};

/* ---- the set ---- */

void
layer_init(struct layers *all, const struct image_chain *chain)
{
	all->count = 0;
	for (unsigned i = 0; i < chain->count; i++)
		if (chain->layer[i]->encryption != CIPHER_NONE)
			all->layer[all->count++] = (struct layer){ .image = chain->layer[i],
								   .number = i };
}

void
layer_done(struct layers *all)
{
	for (unsigned i = 0; i < all->count; i++) {
		cipher_free(all->layer[i].cipher);
		mixed_free(all->layer[i].mixed);
	}
	all->count = 0;
}

static void
bind(struct layer *l, struct node *n)
{
	struct edge *data = edge_find(n, "data-file");

	l->node = n;
	l->stored = data ? data->child : node_file(n);
}

int
layer_bind(struct layers *all, const struct image_chain *chain, struct node *top,
	   struct error **errp)
{
	struct node *n = top;
	unsigned next = 0;

	for (unsigned i = 0; i < chain->count; i++) {
		if (!n)
			return error_set(errp, "%s was changed while it was looked at",
					 chain->layer[i]->filename);
		if (next < all->count && all->layer[next].image == chain->layer[i])
			bind(&all->layer[next++], n);
		n = node_backing_skip(n);
	}
	return 0;
}

bool
layer_is_aes(const struct layer *l)
{
	return l->image->encryption == CIPHER_QCOW_AES || l->image->encryption == CIPHER_QCOW2_AES;
}

void
layer_set_cipher(struct layer *l, struct cipher *c)
{
	cipher_free(l->cipher);
	l->cipher = c;
}

/* ---- sampling ---- */

int
layer_capture(struct layer *l, uint64_t off, unsigned sectors, struct layer_capture *ret)
{
	size_t len = (size_t)sectors * 512;
	uint8_t *buf = malloc(len);
	int r;

	if (!buf)
		return -ENOMEM;
	memset(ret->have, 0, sizeof(ret->have));
	ret->first = off / 512;
	ret->count = sectors;
	l->capture = ret;
	r = node_pread(l->node, off, buf, len);
	l->capture = NULL;
	free(buf);
	return r;
}

static uint64_t
end_of(const struct layer *l)
{
	return round_down(node_size(l->node), 512);
}

/* Before end, with so many pieces looked up at most, which *left counts down. */
static int
next_data(struct layer *l, uint64_t end, uint64_t *left, uint64_t *off, uint64_t *ret_len)
{
	uint64_t step = max_u64(l->image->cluster_size, UNIT);

	while (*off < end && *left) {
		struct extent x;
		int r = node_status(l->node, *off, min_u64(end - *off, STATUS_MAX), false, &x);

		--*left;
		if (r < 0 && !damage_is(r))
			return r;
		if (r < 0) {
			l->damaged = true;
			x = (struct extent){ .len = step - *off % step };
		}
		if (!x.len)
			return -EIO;
		if (x.flags & EXTENT_DATA && x.flags & EXTENT_ALLOCATED &&
		    !(x.flags & (EXTENT_COMPRESSED | EXTENT_ZERO))) {
			*ret_len = x.len;
			return 0;
		}
		*off += x.len;
	}
	*ret_len = 0;
	return 0;
}

int
layer_next_data(struct layer *l, uint64_t *off, uint64_t *ret_len)
{
	uint64_t left = UINT64_MAX;

	return next_data(l, end_of(l), &left, off, ret_len);
}

/* What there is, and how it is walked over. */
struct sampling {
	struct layer *layer;
	uint64_t end;			/* of what is walked over */
	uint64_t total, extents;
	uint64_t step;			/* bytes from one unit to the next */
	uint64_t edge_step;		/* extents from one whose ends are taken to the next */
	uint64_t covered;		/* the end of the last unit */
	uint64_t at;			/* what is looked at: where an error was met */
	struct judge_sample *samples;
	size_t n;
	struct layer_capture capture;
};

static int
count_data(struct sampling *s)
{
	uint64_t off = 0, len, left = WALK_MAX;
	int r;

	for (;; off += len) {
		r = next_data(s->layer, end_of(s->layer), &left, &off, &len);
		s->at = s->end = off;
		if (r < 0 || !len)
			return r;
		s->total += len;
		s->extents++;
	}
}

/* Add what is encrypted in the unit at off, of at most len bytes, to the samples;
 * no sector twice. */
static int
sample_unit(struct sampling *s, uint64_t off, uint64_t len)
{
	struct layer_capture *c = &s->capture;
	int r;

	if (off < s->covered)
		return 0;
	len = min_u64(len, UNIT);
	s->covered = off + len;
	s->at = off;
	r = layer_capture(s->layer, off, (unsigned)(len / 512), c);
	if (r < 0 && damage_is(r)) {
		s->layer->damaged = true;
		return 0;
	}
	if (r < 0)
		return r;
	for (unsigned i = 0; i < c->count && s->n < JUDGE_SAMPLES; i++) {
		if (!c->have[i])
			continue;
		s->samples[s->n].sector = c->first + i;
		memcpy(s->samples[s->n++].data, c->data[i], 512);
	}
	return 0;
}

/* One extent: its first unit, those that the even step falls on, and its last.
 * The ends are worth a look since what is written there is often padded. */
static int
sample_extent(struct sampling *s, uint64_t off, uint64_t len, uint64_t passed, bool edges)
{
	uint64_t in = passed % s->step ? s->step - passed % s->step : 0;
	int r = 0;

	if (edges)
		r = sample_unit(s, off, len);
	for (; r == 0 && in < len; in += s->step)
		r = sample_unit(s, off + in, len - in);
	if (r == 0 && edges && len > UNIT)
		r = sample_unit(s, off + round_down(len - UNIT, 512), UNIT);
	return r;
}

static int
sample_all(struct sampling *s)
{
	uint64_t off = 0, len, passed = 0, left = UINT64_MAX;

	for (uint64_t i = 0;; i++) {
		int r = next_data(s->layer, s->end, &left, &off, &len);

		if (r < 0 || !len)
			return r;
		r = sample_extent(s, off, len, passed, s->edge_step && i % s->edge_step == 0);
		if (r < 0)
			return r;
		passed += len;
		off += len;
	}
}

/* All of a small layer; of a larger one, half of the units evenly spread and
 * half at the ends of extents. */
static int
sample(struct sampling *s)
{
	int r = count_data(s);

	if (r < 0)
		return r;
	s->step = UNIT;
	if (s->total > (uint64_t)UNITS_MAX * UNIT) {
		s->step = round_up(div_up(s->total, UNITS_MAX / 2), 512);
		s->edge_step = div_up(s->extents, UNITS_MAX / 4);
	}
	return sample_all(s);
}

int
layer_sample(struct layer *l, struct judge_sample **ret, size_t *ret_n, struct error **errp)
{
	CLEANUP(cleanup_free) struct sampling *s = calloc(1, sizeof(*s));
	int r;

	if (s)
		s->samples = calloc(JUDGE_SAMPLES, sizeof(*s->samples));
	if (!s || !s->samples)
		return error_set(errp, "Cannot allocate memory");
	s->layer = l;
	r = sample(s);
	if (r < 0) {
		free(s->samples);
		error_set_errno(errp, r, "Could not read '%s' at byte %" PRIu64 " of the disk",
				l->image->filename, s->at);
		return -1;
	}
	*ret = s->samples;
	*ret_n = s->n;
	return 0;
}

bool
layer_fetch(void *layer, uint64_t sector, uint8_t data[512])
{
	struct layer *l = layer;
	struct layer_capture *c;
	struct extent x;
	bool have = false;

	if (sector >= node_size(l->node) / 512 ||
	    node_status(l->node, sector * 512, 512, false, &x) < 0 ||
	    !(x.flags & EXTENT_ALLOCATED))
		return false;
	c = malloc(sizeof(*c));
	if (!c)
		return false;
	if (layer_capture(l, sector * 512, 1, c) == 0 && c->have[0]) {
		memcpy(data, c->data[0], 512);
		have = true;
	}
	free(c);
	return have;
}

int
layer_read_luks(void *layer, uint64_t off, void *buf, size_t len)
{
	struct layer *l = layer;

	return range_within(off, len, l->header_len) ? node_pread(l->file, l->header + off, buf, len)
						     : -EIO;
}
