/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/survey.h"

#include <errno.h>
#include <inttypes.h>
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
	uint64_t cluster = s->layer->image->cluster_size, off = 0, len, passed = 0;
	int r;

	while ((r = layer_next_data(s->layer, &off, &len)) == 0 && len) {
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
	progress_add(s->progress, node_size(s->layer->node) - passed);
	return r;
}

int
survey_run(const struct survey *s, struct error **errp)
{
	CLEANUP(cleanup_free) struct work *w = calloc(1, sizeof(*w));
	int r = -ENOMEM;

	if (w)
		w->mixed = calloc(1, sizeof(*w->mixed));
	if (w && w->mixed) {
		w->layer = s->layer;
		r = look_at_all(s, w);
	}
	if (r == 0) {
		s->layer->mixed = w->mixed;
		return 0;
	}
	if (w)
		mixed_free(w->mixed);
	if (r == -ECANCELED)
		return -1;
	if (r == -E2BIG)
		return error_set(errp, "'%s' is stored in more than one way in more than %d places",
				 s->layer->image->filename, MIXED_RANGES_MAX);
	error_set_errno(errp, r, "Could not read '%s' at byte %" PRIu64 " of the disk",
			s->layer->image->filename, w ? w->at : 0);
	return -1;
}
