/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/copy.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/node.h"
#include "rescue/image.h"

enum { SMALLEST_STEP = 4096 };

void
copy_init(struct copy *c)
{
	lost_init(&c->lost);
}

void
copy_done(struct copy *c)
{
	output_free(c->output);
	lost_done(&c->lost);
}

/* The clusters of the layers that the copy is made of. */
static void
set_clusters(const struct copy *c, struct pipeline *p)
{
	p->step = UINT64_MAX;
	for (unsigned i = c->layer; i < c->chain->count; i++) {
		uint64_t cluster = c->chain->layer[i]->cluster_size;

		if (!cluster)
			cluster = SMALLEST_STEP;
		p->step = min_u64(p->step, cluster);
		p->cluster = max_u64(p->cluster, cluster);
		if (c->base)
			break;
	}
}

static void
set_up(struct copy *c, struct pipeline *p)
{
	*p = (struct pipeline){
		.source = c->source,
		.base = c->base,
		.layer = c->layer,
		.start = c->start,
		.whole = c->spec.whole ? c->spec.cluster : 0,
		.starts_zeroed = output_starts_zeroed(&c->spec),
		.sink = c->output ? output_sink(c->output) : NULL,
		.progress = c->progress,
		.digest = c->want_digest ? &c->hash : NULL,
		.lost = c->salvage ? &c->lost : NULL,
	};
	set_clusters(c, p);
	digest_init(&c->hash);
}

static const char *
source_name(const struct copy *c)
{
	return c->chain->layer[c->layer]->filename;
}

const char *
copy_blamed(const struct copy *c, const struct lost_range *r)
{
	const struct image *im = c->chain->layer[r->layer];
	/* Anything else is of the tables, or lies with them. */
	bool is_content = r->why == LOST_UNREADABLE || r->why == LOST_BEYOND_END;

	return is_content && im->data ? im->data->filename : im->filename;
}

static int
explain(const struct copy *c, const struct pipeline *p, int err, struct error **errp)
{
	switch (p->error_side) {
	case PIPELINE_TARGET:
		error_set_errno(errp, err, "Could not %s '%s' at byte %" PRIu64 " of the disk",
				p->compare ? "read back" : "write", c->spec.name, p->error_at);
		break;
	case PIPELINE_DIFFERENT:
		return error_set(errp, "'%s' differs from '%s' at byte %" PRIu64 " of the disk",
				 c->spec.name, source_name(c), p->error_at);
	default:
		if (err == -E2BIG)
			return error_set(errp, "'%s' is damaged in more than %d places",
					 source_name(c), LOST_MAX);
		error_set_errno(errp, err, "Could not read '%s' at byte %" PRIu64 " of the disk",
				source_name(c), p->error_at);
		if (err != -ENOMEM)
			error_append(errp, " (%s: %s)", copy_blamed(c, &p->error_cause),
				     lost_why_text(p->error_cause.why));
	}
	return -1;
}

int
copy_measure(struct copy *c, struct error **errp)
{
	struct pipeline p;
	int err;

	set_up(c, &p);
	err = pipeline_measure(&p, &c->size);
	return err < 0 ? explain(c, &p, err, errp) : 0;
}

int
copy_open(struct copy *c, struct error **errp)
{
	return output_open(&c->spec, node_size(c->source), c->start, &c->output, errp);
}

int
copy_begin(struct copy *c, struct error **errp)
{
	return output_begin(c->output, errp);
}

uint64_t
copy_work(struct copy *c, bool verify)
{
	struct pipeline p;

	set_up(c, &p);
	p.compare = verify;
	return pipeline_work(&p, &c->size);
}

uint64_t
copy_position(struct copy *c)
{
	if (c->copied)
		return node_size(c->source);
	return c->running ? max_u64(c->start, pipeline_done(c->running)) : c->start;
}

static int
run(struct copy *c, struct pipeline *p, struct error **errp)
{
	int err;

	c->running = p;
	err = pipeline_run(p);
	c->running = NULL;
	if (err == -ECANCELED)
		return -1;
	return err < 0 ? explain(c, p, err, errp) : 0;
}

int
copy_run(struct copy *c, struct error **errp)
{
	struct pipeline p;

	set_up(c, &p);
	if (run(c, &p, errp) < 0) {
		/* What was done before it ended is worth keeping. */
		c->start = max_u64(c->start, min_u64(p.at, pipeline_done(&p)));
		return -1;
	}
	c->copied = true;
	if (c->want_digest)
		digest_hex(&c->hash, c->digest);
	return 0;
}

int
copy_verify(struct copy *c, struct error **errp)
{
	struct pipeline p;
	const char *how;
	int r;

	if (output_reopen(c->output, &how, errp) < 0)
		return -1;
	set_up(c, &p);
	p.compare = true;
	p.start = 0;
	p.digest = NULL;
	r = run(c, &p, errp);
	output_close(c->output);
	if (r == 0)
		c->verified = how;
	return r;
}

void
copy_stop(struct copy *c)
{
	if (c->running)
		pipeline_stop(c->running);
}
