/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/survey.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/node.h"
#include "rescue/damage.h"
#include "rescue/image.h"
#include "rescue/layer.h"
#include "rescue/mixed.h"
#include "rescue/progress.h"

enum {
	SECTOR = 512,
	PIECE = LAYER_CAPTURE,			/* sectors read at a time */
	CLUSTER_MAX = 2 * 1024 * 1024 / SECTOR,	/* of all formats */
	LINE = 2048,
	SHOWN_MAX = 20,				/* ranges, of one layer */
};

struct work {
	struct layer *layer;
	struct mixed *mixed;
	uint64_t at;			/* what is looked at: where an error was met */
	struct layer_capture capture;
	struct mixed_vote votes[CLUSTER_MAX];
	enum mixed_reading readings[CLUSTER_MAX];
};

/* The votes of sectors from off on; what cannot be read has none. */
static int
look_at_piece(struct work *w, uint64_t off, unsigned sectors, struct mixed_vote *votes)
{
	const struct layer_capture *c = &w->capture;
	int r = layer_capture(w->layer, off, sectors, &w->capture);

	if (r < 0 && damage_is(r) && sectors > 1) {
		unsigned half = sectors / 2;

		r = look_at_piece(w, off, half, votes);
		return r < 0 ? r : look_at_piece(w, off + half * SECTOR, sectors - half,
						 votes + half);
	}
	if (r < 0)
		return damage_is(r) ? 0 : r;
	for (unsigned i = 0; i < sectors; i++)
		if (c->have[i])
			votes[i] = mixed_look(w->layer->cipher, c->first + i, c->file[i],
					      c->data[i]);
	return 0;
}

/* [off, off + len) is a cluster, or what the layer stores of one. */
static int
look_at_cluster(struct work *w, uint64_t off, uint64_t len)
{
	size_t n = len / SECTOR;
	int r = 0;

	memset(w->votes, 0, n * sizeof(*w->votes));
	for (size_t at = 0; at < n && r == 0; at += PIECE)
		r = look_at_piece(w, off + at * SECTOR, (unsigned)min_u64(PIECE, n - at),
				  w->votes + at);
	if (r == 0)
		r = mixed_decide(w->votes, n, w->readings);
	return r < 0 ? r : mixed_add(w->mixed, off, w->readings, n);
}

static int
look_at_all(const struct survey *s, struct work *w)
{
	uint64_t cluster = w->layer->image->cluster_size, off = 0, len, passed = 0;
	int r;

	while ((r = layer_next_data(w->layer, &off, &len)) == 0 && len) {
		for (uint64_t end = off + len, n; off < end; off += n) {
			n = min_u64(end - off, cluster - off % cluster);
			w->at = off;
			if (*s->stop)
				return -ECANCELED;
			r = look_at_cluster(w, off, n);
			if (r < 0)
				return r;
			progress_add(s->progress, off + n - passed);
			passed = off + n;
		}
	}
	w->at = off;
	progress_add(s->progress, node_size(w->layer->node) - passed);
	return r;
}

static int
fail(const struct work *w, int err, struct error **errp)
{
	const char *file = w->layer->image->filename;

	if (err == -ECANCELED)
		return -1;
	if (err == -E2BIG)
		return error_set(errp, "'%s' is stored in more than one way in more than %d places%s",
				 file, MIXED_RANGES_MAX,
				 w->mixed->others ? ", with the layers above it" : "");
	error_set_errno(errp, err, "Could not read '%s' at byte %" PRIu64 " of the disk", file, w->at);
	return -1;
}

static size_t
count_ranges(const struct layers *layers)
{
	size_t n = 0;

	for (unsigned i = 0; i < layers->count; i++)
		n += layers->layer[i].mixed ? layers->layer[i].mixed->n : 0;
	return n;
}

static int
survey_layer(const struct survey *s, struct layer *l, struct error **errp)
{
	CLEANUP(cleanup_free) struct work *w = calloc(1, sizeof(*w));
	int r;

	if (w)
		w->mixed = calloc(1, sizeof(*w->mixed));
	if (!w || !w->mixed)
		return error_set(errp, "Cannot allocate memory");
	w->layer = l;
	w->mixed->others = count_ranges(s->layers);
	r = look_at_all(s, w);
	if (r < 0) {
		fail(w, r, errp);
		mixed_free(w->mixed);
		return -1;
	}
	l->mixed = w->mixed;
	return 0;
}

int
survey_run(const struct survey *s, struct error **errp)
{
	for (unsigned i = 0; i < s->layers->count; i++) {
		struct layer *l = &s->layers->layer[i];

		if (layer_is_aes(l) && survey_layer(s, l, errp) < 0)
			return -1;
	}
	return 0;
}

uint64_t
survey_work(const struct survey *s)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < s->layers->count; i++)
		if (layer_is_aes(&s->layers->layer[i]))
			bytes += node_size(s->layers->layer[i].node);
	return bytes;
}

void
survey_watch(struct layers *layers, bool on)
{
	for (unsigned i = 0; i < layers->count; i++) {
		struct layer *l = &layers->layer[i];

		l->watch = on && l->cipher && layer_is_aes(l);
		if (on)
			l->first_suspect = UINT64_MAX;
	}
}

/* ---- for people ---- */

static void __attribute__((format(printf, 2, 3)))
sayf(void (*say)(const char *line), const char *fmt, ...)
{
	char line[LINE];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	say(line);
}

static void
tell_mixed(const char *file, const struct mixed *m, void (*say)(const char *line))
{
	char plain[PROGRESS_BYTES], iv[PROGRESS_BYTES];

	progress_format_bytes(m->bytes[MIXED_PLAIN], plain);
	progress_format_bytes(m->bytes[MIXED_FILE_IV], iv);
	sayf(say, "%s: %s are not encrypted, and %s with the IV of their place in the file%s", file,
	     plain, iv, m->n ? "; they are read so:" : "");
	for (size_t i = 0; i < m->n && i < SHOWN_MAX; i++)
		sayf(say, "    bytes %" PRIu64 " to %" PRIu64 " of the disk: %s", m->range[i].off,
		     m->range[i].off + m->range[i].len - 1,
		     mixed_reading_name(m->range[i].reading));
	if (m->n > SHOWN_MAX)
		sayf(say, "    and %zu places more, which --json lists", m->n - SHOWN_MAX);
}

void
survey_tell(const struct layers *layers, void (*say)(const char *line))
{
	for (unsigned i = 0; say && i < layers->count; i++) {
		const struct layer *l = &layers->layer[i];

		if (l->mixed)
			tell_mixed(l->image->filename, l->mixed, say);
		else if (l->suspects)
			sayf(say, "%s: %" PRIu64 " sectors look as if they were stored otherwise, "
			     "the first at byte %" PRIu64 " of the disk; --mixed-encryption looks "
			     "closer", l->image->filename, l->suspects, l->first_suspect);
	}
}
