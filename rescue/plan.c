/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/plan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "aio/work.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/node.h"
#include "rescue/device.h"
#include "rescue/folder.h"
#include "rescue/image.h"
#include "rescue/phase.h"
#include "rescue/run.h"
#include "rescue/sink.h"
#include "rescue/target.h"

#define MAP_ENDING   ".map"
#define STATE_ENDING "rescue-state"

enum { OPTIONS_TEXT = 128, FIRST_TABLE_MAX = 4 * 1024 * 1024 };

/* ---- names ---- */

static const char *
base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* Is b what a is called, or its map? */
static bool
clashes(const char *a, const char *b)
{
	size_t len = strlen(a);

	return !strncmp(a, b, len) && (!b[len] || !strcmp(b + len, MAP_ENDING));
}

static bool
has_namesakes(const struct image_chain *chain)
{
	for (unsigned i = 0; i < chain->count; i++)
		for (unsigned j = 0; j < chain->count; j++)
			if (j != i && clashes(base_name(chain->layer[i]->filename),
					      base_name(chain->layer[j]->filename)))
				return true;
	return false;
}

/* What the copy of layer i is called in the folder; malloc'ed. */
static char *
layer_file(const struct image_chain *chain, unsigned i)
{
	const char *name = base_name(chain->layer[i]->filename);
	char *ret;

	if (!has_namesakes(chain))
		return strdup(name);
	return asprintf(&ret, "%u-%s", i, name) < 0 ? NULL : ret;
}

/* ---- checking ---- */

static struct output_spec
flat_spec(const struct run_options *o)
{
	return (struct output_spec){ .name = o->target, .kind = output_kind_of(o->target),
				     .qcow2 = o->format == RUN_QCOW2, .force = o->force,
				     .folder = -1, .stop = -1, .partial = o->resume,
				     .cluster = OUTPUT_CLUSTER, .packing = o->packing,
				     .whole = o->packing != OUTPUT_STORED };
}

static const char *const hidden_endings[] = { "rescue", STATE_ENDING, STATE_ENDING ".new" };

static int
check_hidden(const struct image_chain *chain, const char *path, struct error **errp)
{
	if (device_find_source(chain, path))
		return error_set(errp, "'%s', which --resume would write to, is to be read; it is "
				 "never overwritten", path);
	return 0;
}

/* What a run that can be resumed writes to by fixed names must not be what it reads. */
static int
check_resume(const struct run_options *o, const struct image_chain *chain, struct error **errp)
{
	for (size_t i = 0; i < ARRAY_SIZE(hidden_endings); i++) {
		CLEANUP(cleanup_free) char *path = target_hidden_path(o->target, hidden_endings[i]);

		if (!path)
			return error_set(errp, "Cannot allocate memory");
		if (check_hidden(chain, path, errp) < 0)
			return -1;
	}
	for (unsigned i = 0; o->keep_chain && i < chain->count; i++) {
		CLEANUP(cleanup_free) char *folder = target_hidden_path(o->target, "rescue");
		CLEANUP(cleanup_free) char *file = layer_file(chain, i);
		CLEANUP(cleanup_free) char *path = NULL;

		if (!folder || !file || asprintf(&path, "%s/%s", folder, file) < 0)
			return error_set(errp, "Cannot allocate memory");
		if (check_hidden(chain, path, errp) < 0)
			return -1;
	}
	return 0;
}

/* Neither may the target have the map's name, nor what becomes the target. */
static int
check_map_name(const struct run_options *o, struct error **errp)
{
	if (target_is_same_place(o->map, o->target))
		return error_set(errp, "The map cannot be the target: '%s'", o->map);
	for (size_t i = 0; o->resume && i < ARRAY_SIZE(hidden_endings); i++) {
		CLEANUP(cleanup_free) char *path = target_hidden_path(o->target, hidden_endings[i]);

		if (!path)
			return error_set(errp, "Cannot allocate memory");
		if (target_is_same_place(o->map, path))
			return error_set(errp, "The map cannot be '%s', which --resume writes to",
					 o->map);
	}
	return 0;
}

/* A run that is resumed may find the map that it left itself; see leave_map(). */
static bool
may_find_map(const struct run_options *o)
{
	CLEANUP(cleanup_free) char *state = NULL;

	if (o->resume)
		state = target_hidden_path(o->target, STATE_ENDING);
	return state && access(state, F_OK) == 0;
}

static int
check_map(const struct run_options *o, const struct image_chain *chain, struct error **errp)
{
	struct output_spec map = { .name = o->map, .force = o->force || may_find_map(o),
				   .folder = -1, .stop = -1 };

	if (output_kind_of(o->target) == OUTPUT_FILE && check_map_name(o, errp) < 0)
		return -1;
	return output_check(&map, chain, errp);
}

int
plan_check(const struct run_options *o, const struct image_chain *chain, struct error **errp)
{
	struct output_spec spec = flat_spec(o);

	if (o->resume && check_resume(o, chain, errp) < 0)
		return -1;
	if (o->keep_chain)
		return folder_check_place(o->target, errp);
	if (output_check(&spec, chain, errp) < 0)
		return -1;
	return o->map ? check_map(o, chain, errp) : 0;
}

/* ---- the copies ---- */

int
plan_init(struct plan *p, struct error **errp)
{
	*p = (struct plan){ .stop = eventfd(0, EFD_CLOEXEC) };
	if (p->stop >= 0)
		return 0;
	error_set_errno(errp, errno, "Could not make a descriptor");
	return -1;
}

/* A relative name with a colon would be taken for a protocol. */
static char *
backing_name(const struct image_chain *chain, unsigned i)
{
	CLEANUP(cleanup_free) char *name = layer_file(chain, i);
	char *ret;

	if (!name || asprintf(&ret, "%s%s", strchr(name, ':') ? "./" : "", name) < 0)
		return NULL;
	return ret;
}

/* Raw layers stay raw, unless all are to be qcow2. */
static bool
becomes_qcow2(const struct run_options *o, const struct image *im)
{
	return o->format == RUN_QCOW2 || im->format == IMAGE_QCOW || im->format == IMAGE_QCOW2;
}

/* A target's first table, of 8 bytes for each cluster / 8 clusters, is in memory while it
 * is written.  So clusters of a disk this large are this large at least. */
static uint64_t
least_cluster(uint64_t size)
{
	uint64_t cluster = 512;

	while (cluster < PIPELINE_CHUNK && size / cluster > FIRST_TABLE_MAX / 64 * cluster)
		cluster *= 2;
	return cluster;
}

/* What the layer has or leaves to its base as a whole. */
static uint64_t
layer_unit(const struct image *im)
{
	uint64_t cluster = im->cluster_size ? im->cluster_size : OUTPUT_CLUSTER;

	return im->subclusters ? cluster / 32 : cluster;
}

/* The copy's clusters: such units, if they are not too small, and no more than can be
 * compressed at once. */
static uint64_t
layer_cluster(const struct run_options *o, const struct image *im, uint64_t size)
{
	uint64_t cluster = max_u64(layer_unit(im), least_cluster(size));

	return o->packing == OUTPUT_STORED ? cluster : min_u64(cluster, PIPELINE_CHUNK);
}

static int
plan_layer(struct plan *p, struct copy *c, unsigned i, struct node *n)
{
	const struct image *im = p->chain->layer[i];
	bool last = i + 1 == p->chain->count;
	CLEANUP(cleanup_free) char *file = layer_file(p->chain, i);
	char *name;

	if (!file || asprintf(&name, "%s/%s", p->o->target, file) < 0)
		return -1;
	c->source = n;
	c->base = last ? NULL : node_backing_skip(n);
	c->layer = i;
	c->spec = (struct output_spec){ .name = name, .kind = OUTPUT_FILE,
					.qcow2 = becomes_qcow2(p->o, im), .folder = -1, .stop = -1,
					.partial = p->o->resume,
					.cluster = layer_cluster(p->o, im, node_size(n)),
					.packing = p->o->packing };
	c->spec.whole = c->spec.qcow2 && (p->o->packing != OUTPUT_STORED ||
					   c->spec.cluster > layer_unit(im));
	if (last)
		return 0;
	c->spec.backing = backing_name(p->chain, i + 1);
	c->spec.backing_is_qcow2 = becomes_qcow2(p->o, p->chain->layer[i + 1]);
	return c->spec.backing ? 0 : -1;
}

static int
plan_copies(struct plan *p, struct node *top)
{
	p->count = p->o->keep_chain ? p->chain->count : 1;
	p->copy = calloc(p->count, sizeof(*p->copy));
	p->resumed = calloc(p->count, sizeof(*p->resumed));
	if (!p->copy || !p->resumed) {
		p->count = 0;
		return -1;
	}
	for (unsigned i = 0; i < p->count; i++) {
		struct copy *c = &p->copy[i];

		copy_init(c);
		c->chain = p->chain;
		c->salvage = p->o->salvage;
		c->want_digest = p->o->digest;
		c->lost.total = &p->lost;
		p->resumed[i].lost = &c->lost;
	}
	if (!p->o->keep_chain) {
		p->copy[0].source = top;
		p->copy[0].spec = flat_spec(p->o);
		p->copy[0].spec.stop = p->stop;
		p->copy[0].spec.cluster = max_u64(OUTPUT_CLUSTER, least_cluster(node_size(top)));
	}
	for (unsigned i = 0; p->o->keep_chain && i < p->count; i++, top = node_backing_skip(top))
		if (plan_layer(p, &p->copy[p->count - 1 - i], i, top) < 0)
			return -1;
	for (unsigned i = 0; i < p->count; i++)
		p->resumed[i].size = node_size(p->copy[i].source);
	return 0;
}

/* What must be the same for another run to go on. */
static int
resume(struct plan *p, const struct layers *layers, struct error **errp)
{
	const struct image *top = p->chain->layer[0];
	static const char *const packings[] = { "", " zlib", " zstd" };
	char options[OPTIONS_TEXT], snapshot[OPTIONS_TEXT / 2] = "";

	/* Its place in the table will do, for the table is the same if the file is. */
	if (top->shown)
		snprintf(snapshot, sizeof(snapshot), " snapshot %u", top->shown->index);
	snprintf(options, sizeof(options), "%s%s%s%s%s%s",
		 p->o->format == RUN_QCOW2 ? "qcow2" : "raw", packings[p->o->packing],
		 p->o->keep_chain ? " keep-chain" : "", p->o->salvage ? " salvage" : "",
		 p->o->mixed ? " mixed" : "", snapshot);
	if (resume_start(p->o->target, p->chain, layers, options, p->o->verify, p->resumed, p->count,
			 &p->resume, errp) < 0)
		return -1;
	for (unsigned i = 0; i < p->count; i++)
		p->copy[i].start = p->copy[i].resumed_at = p->resumed[i].done;
	if (resume_is_doubtful(p->resume) && p->o->say)
		p->o->say("the source was changed since it was begun; all of it will be compared");
	return 0;
}

int
plan_make(struct plan *p, const struct run_options *o, const struct image_chain *chain,
	  const struct layers *layers, struct node *top, struct progress *progress,
	  struct error **errp)
{
	p->o = o;
	p->chain = chain;
	if (plan_copies(p, top) < 0)
		return error_set(errp, "Cannot allocate memory");
	for (unsigned i = 0; i < p->count; i++)
		p->copy[i].progress = progress;
	return o->resume ? resume(p, layers, errp) : 0;
}

struct making {
	struct plan *p;
	struct error **errp;
};

/* Is it a file that this plan makes in its folder? */
static bool
is_ours(const char *name, void *user)
{
	const struct plan *p = user;

	for (unsigned i = 0; i < p->count; i++) {
		const char *ours = base_name(p->copy[i].spec.name);

		if (!strcmp(name, ours) || (p->o->salvage && clashes(ours, name)))
			return true;
	}
	return false;
}

static int
folder_work(void *arg)
{
	struct making *m = arg;
	struct plan *p = m->p;

	if (folder_new(p->o->target, p->o->resume, &p->folder, m->errp) < 0)
		return -1;
	return folder_check_content(p->folder, is_ours, p, m->errp);
}

static int
sync_folder_work(void *arg)
{
	struct making *m = arg;

	return folder_sync(m->p->folder, m->errp);
}

static int
open_copies(struct plan *p, struct error **errp)
{
	struct making m = { p, errp };

	if (p->o->keep_chain && work_run(folder_work, &m) < 0)
		return -1;
	for (unsigned i = 0; i < p->count; i++) {
		if (p->folder)
			p->copy[i].spec.folder = folder_fd(p->folder);
		if (copy_open(&p->copy[i], errp) < 0)
			return -1;
	}
	/* The record must not speak of files that a power cut takes away. */
	return p->folder && p->resume ? work_run(sync_folder_work, &m) : 0;
}

static void
doubt_space(const struct plan *p, const struct error *doubt)
{
	CLEANUP(cleanup_free) char *line = NULL;

	if (p->o->say && asprintf(&line, "note: %s; compressed it takes less, or fails",
				  error_text(doubt)) >= 0)
		p->o->say(line);
}

/* All must have room as it is but for what will be compressed: how far that can be shows
 * when it is, and clusters that turn out to be zeroes take none at all. */
static int
check_space(struct plan *p, struct error **errp)
{
	CLEANUP(error_freep) struct error *doubt = NULL;
	uint64_t stored = 0, packed = 0;

	for (unsigned i = 0; i < p->count; i++) {
		const struct copy *c = &p->copy[i];

		if (c->spec.qcow2 && c->spec.packing != OUTPUT_STORED)
			packed += c->size.fresh;
		else
			stored += c->size.fresh;
	}
	if (output_check_space(p->copy[0].output, stored, errp) < 0)
		return -1;
	if (packed && output_check_space(p->copy[0].output, stored + packed, &doubt) < 0)
		doubt_space(p, doubt);
	return 0;
}

int
plan_open(struct plan *p, struct error **errp)
{
	for (unsigned i = 0; i < p->count; i++)
		if (copy_measure(&p->copy[i], errp) < 0)
			return -1;
	phase_set("opening the target\n");
	return open_copies(p, errp) < 0 ? -1 : check_space(p, errp);
}

uint64_t
plan_work(const struct plan *p, bool verify)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < p->count; i++)
		sum += copy_work(&p->copy[i], verify);
	return sum;
}

void
plan_stop(struct plan *p)
{
	for (unsigned i = 0; i < p->count; i++)
		copy_stop(&p->copy[i]);
	/* Who waits for the other end of a target hears of it here. */
	(void)eventfd_write(p->stop, 1);
}

/* ---- going on another time ---- */

static int
record_work(void *arg)
{
	struct making *m = arg;

	return resume_record(m->p->resume, m->errp);
}

int
plan_finish(struct plan *p, unsigned i, struct error **errp)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &p->sinks;

	co_mutex_lock(held);
	return output_sink(p->copy[i].output) ? output_finish(p->copy[i].output, errp) : 0;
}

int
plan_begin(struct plan *p, unsigned i, struct error **errp)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &p->sinks;

	co_mutex_lock(held);
	return copy_begin(&p->copy[i], errp);
}

int
plan_record(struct plan *p, struct error **errp)
{
	CLEANUP(co_mutex_unlockp) struct co_mutex *held = &p->sinks;
	struct making m = { p, errp };
	uint64_t done[IMAGE_CHAIN_MAX] = { 0 };

	co_mutex_lock(held);
	/* First what is with the sinks, then make it stable, then say so. */
	for (unsigned i = 0; i < p->count; i++)
		done[i] = copy_position(&p->copy[i]);
	for (unsigned i = 0; i < p->count; i++) {
		struct sink *s = output_sink(p->copy[i].output);
		int r = s && done[i] != p->resumed[i].done ? s->ops->flush(s) : 0;

		if (r < 0) {
			error_set_errno(errp, r, "Could not write '%s'", p->copy[i].spec.name);
			return -1;
		}
	}
	for (unsigned i = 0; i < p->count; i++)
		p->resumed[i].done = done[i];
	if (work_run(record_work, &m) < 0)
		return -1;
	p->kept = 0;
	for (unsigned i = 0; i < p->count; i++)
		p->kept += done[i];
	return 0;
}

uint64_t
plan_kept(const struct plan *p)
{
	return p->kept;
}

/* ---- publishing ---- */

static const char *
blamed(void *user, const struct lost_range *r)
{
	return copy_blamed(user, r);
}

static int
print_map(struct copy *c, struct target *t, struct error **errp)
{
	int fd = dup(target_fd(t));
	FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
	bool bad;

	if (!f) {
		cleanup_close(&fd);
		return error_set(errp, "Cannot allocate memory");
	}
	lost_print_map(&c->lost, node_size(c->source), blamed, c, f);
	bad = ferror(f);
	if (fclose(f) == 0 && !bad)
		return 0;
	error_set_errno(errp, errno, "Could not write the map");
	return -1;
}

static int
leave_map(struct plan *p, struct copy *c, struct error **errp)
{
	CLEANUP(target_freep) struct target *t = NULL;
	CLEANUP(cleanup_free) char *beside = NULL;
	int r;

	if (p->folder) {
		if (asprintf(&beside, "%s" MAP_ENDING, c->spec.name) < 0)
			return error_set(errp, "Cannot allocate memory");
		r = target_new_in(folder_fd(p->folder), beside, true, &t, errp);
	} else {
		r = target_new_in(-1, p->o->map, p->o->force, &t, errp);
	}
	if (r < 0 || print_map(c, t, errp) < 0 || target_sync(t, errp) < 0)
		return -1;
	/* Another run may have come as far as this, and no further. */
	return (p->resume ? target_publish_or_find : target_publish)(t, errp);
}

static int
maps_work(void *arg)
{
	struct making *m = arg;

	for (unsigned i = 0; i < m->p->count; i++)
		if (leave_map(m->p, &m->p->copy[i], m->errp) < 0)
			return -1;
	return 0;
}

static int
publish_folder_work(void *arg)
{
	struct making *m = arg;

	return folder_publish(m->p->folder, m->errp);
}

static int
end_work(void *arg)
{
	struct making *m = arg;

	return resume_end(m->p->resume, m->errp);
}

void
plan_forget(struct plan *p)
{
	struct making m = { p, NULL };

	if (p->resume)
		(void)work_run(end_work, &m);
	p->kept = 0;
}

/* Data that is missing is said to be so before the target can be taken for whole. */
int
plan_publish(struct plan *p, struct error **errp)
{
	struct making m = { p, errp };

	if (p->o->salvage && work_run(maps_work, &m) < 0)
		return -1;
	for (unsigned i = 0; i < p->count; i++)
		if (output_publish(p->copy[i].output, errp) < 0)
			return -1;
	if (p->folder && work_run(publish_folder_work, &m) < 0)
		return -1;
	return p->resume ? work_run(end_work, &m) : 0;
}

uint64_t
plan_lost(struct plan *p, uint64_t *ret_places)
{
	uint64_t bytes = 0;

	*ret_places = 0;
	for (unsigned i = 0; i < p->count; i++) {
		bytes += lost_bytes(&p->copy[i].lost);
		*ret_places += p->copy[i].lost.n;
	}
	return bytes;
}

void
plan_done(struct plan *p)
{
	for (unsigned i = 0; i < p->count; i++) {
		struct copy *c = &p->copy[i];

		copy_done(c);
		if (p->o->keep_chain) {
			free((void *)(uintptr_t)c->spec.name);
			free((void *)(uintptr_t)c->spec.backing);
		}
	}
	free(p->copy);
	free(p->resumed);
	resume_free(p->resume);
	folder_free(p->folder);
	cleanup_close(&p->stop);
	*p = (struct plan){ .stop = -1 };
}
