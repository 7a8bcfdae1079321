/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "aio/timer.h"
#include "aio/work.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/check.h"
#include "block/driver.h"
#include "block/io.h"
#include "block/node.h"
#include "block/open.h"
#include "rescue/device.h"
#include "rescue/image.h"
#include "rescue/options.h"
#include "rescue/sink.h"
#include "rescue/target.h"
#include "schema/types.h"

enum {
	FILE_GRAIN = 4096,
	SECTOR = 512,
	LOCK_TRIES = 20,
	LOCK_WAIT_NS = 100 * 1000 * 1000,
	DEVICE_GRAIN = 65536,
	COUNTED_MAX = 8 * 1024 * 1024,	/* clusters that a check counts in 16 MiB */
};

struct output {
	struct output_spec spec;
	uint64_t size, start;
	struct target *file;	/* a file only */
	int device;		/* the claim on a device; -1: none */
	struct sink *sink;
};

enum output_kind
output_kind_of(const char *name)
{
	if (!strcmp(name, "-"))
		return OUTPUT_STREAM;
	if (sink_nbd_is_uri(name))
		return OUTPUT_NBD;
	return device_is(name) ? OUTPUT_DEVICE : OUTPUT_FILE;
}

/* ---- checking ---- */

static int
check_stream(struct error **errp)
{
	int flags = fcntl(STDOUT_FILENO, F_GETFL);

	if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY) {
		error_set_errno(errp, EBADF, "Could not use standard output");
		return -1;
	}
	if (isatty(STDOUT_FILENO))
		return error_set(errp, "Standard output is a terminal; a disk is not written to it");
	return 0;
}

static int
check_file(const struct output_spec *spec, const struct image_chain *chain, struct error **errp)
{
	if (device_check_source(chain, spec->name, errp) < 0)
		return -1;
	return target_check_place(spec->name, spec->force, errp);
}

int
output_check(const struct output_spec *spec, const struct image_chain *chain,
	     struct error **errp)
{
	if (spec->qcow2 && (spec->kind == OUTPUT_STREAM || spec->kind == OUTPUT_NBD))
		return error_set(errp, "Standard output and NBD exports take the format raw only");
	if ((spec->kind == OUTPUT_DEVICE || spec->kind == OUTPUT_NBD) && !spec->force)
		return error_set(errp, "'%s' exists, and all that is on it will be lost; --force "
				 "overwrites it", spec->name);
	switch (spec->kind) {
	case OUTPUT_STREAM:
		return check_stream(errp);
	case OUTPUT_DEVICE:
		return device_check_source(chain, spec->name, errp);
	case OUTPUT_FILE:
		return check_file(spec, chain, errp);
	default:
		return 0;
	}
}

/* ---- opening ---- */

/* Where the block layer finds it. */
static const char *
path_of(const struct output *o)
{
	return o->file ? target_open_path(o->file) : o->spec.name;
}

static struct options_place
place_of(const struct output *o)
{
	return (struct options_place){ .path = path_of(o),
				       .device = o->spec.kind == OUTPUT_DEVICE };
}

/* The kernel may still hold the locks of a run that was killed a moment ago, until the
 * last of its requests has ended.  Do op, which wants them, until it can be done; others
 * wait for nothing. */
static int
do_patiently(const struct output *o, int (*op)(void *arg, struct error **errp), void *arg,
	     struct error **errp)
{
	for (unsigned i = 0; i < LOCK_TRIES && o->spec.partial; i++) {
		if (op(arg, NULL) == 0)
			return 0;
		if (co_sleep(LOCK_WAIT_NS) < 0)
			break;
	}
	return op(arg, errp);
}

static int
create_op(void *arg, struct error **errp)
{
	return driver_find("qcow2")->create(arg, errp);
}

static int
format_qcow2(struct output *o, struct error **errp)
{
	struct options_place place = place_of(o);
	struct options_qcow2 how = { .size = round_up(o->size, SECTOR),
				     .cluster = o->spec.cluster,
				     .zstd = o->spec.packing == OUTPUT_ZSTD,
				     .backing = o->spec.backing,
				     .backing_is_qcow2 = o->spec.backing_is_qcow2 };
	CLEANUP(BlockdevCreateOptions_freep) struct BlockdevCreateOptions *create = NULL;

	create = options_create_qcow2(&place, &how);
	if (!create)
		return error_set(errp, "Cannot allocate memory");
	return do_patiently(o, create_op, create, errp);
}

static int
damaged(const struct output *o, struct error **errp)
{
	return error_set(errp, "The partial file of '%s' is damaged; remove it to begin anew",
			 o->spec.name);
}

/* What an earlier run left behind what it recorded is worth nothing: clusters that are
 * counted and not used, and data that this run may not find again. */
static int
tidy_qcow2(const struct output *o, struct node *n, struct error **errp)
{
	struct check_result found = { .corruptions = 0 };
	int r = 0;

	/* Of a very large one what is lost is space: too little to take that much memory. */
	if (node_size(node_file(n)) / o->spec.cluster <= COUNTED_MAX)
		r = node_check(n, CHECK_FIX_LEAKS, NULL, &found);

	if (r == 0 && (found.corruptions || found.errors ||
		       node_size(n) != round_up(o->size, SECTOR)))
		return damaged(o, errp);
	if (r == 0)
		r = node_discard(n, round_up(o->start, o->spec.cluster),
				 o->size - min_u64(o->size, round_up(o->start, o->spec.cluster)));
	if (r == 0)
		return 0;
	error_set_errno(errp, r, "Could not go on with '%s'", o->spec.name);
	return -1;
}

struct opening {
	struct output *o;
	const struct BlockdevOptions *options;
	const struct sink_node_options *how;
	struct node *n;
};

/* The sink's claim to write locks as well as the opening. */
static int
open_op(void *arg, struct error **errp)
{
	struct opening *op = arg;
	struct open_policy policy = open_policy_default;

	policy.table_memory = op->how->read_only ? OPTIONS_TABLE_MEMORY : 0;
	if (node_open(op->options, &policy, &op->n, errp) < 0)
		return -1;
	if (sink_node_new(op->n, op->how, &op->o->sink, errp) == 0)
		return 0;
	node_unref(op->n);
	op->n = NULL;
	return -1;
}

static int
open_sink(struct output *o, const struct options_place *place,
	  const struct sink_node_options *how, struct error **errp)
{
	CLEANUP(BlockdevOptions_freep) struct BlockdevOptions *options = NULL;
	CLEANUP(node_unrefp) struct node *n = NULL;
	struct opening op = { .o = o, .how = how };

	options = options_for_target(place, o->spec.qcow2);
	if (!options)
		return error_set(errp, "Cannot allocate memory");
	op.options = options;
	if (do_patiently(o, open_op, &op, errp) < 0)
		return -1;
	n = op.n;
	return o->spec.qcow2 && o->start && !how->read_only ? tidy_qcow2(o, n, errp) : 0;
}

static int
open_node(struct output *o, struct error **errp)
{
	struct options_place place = place_of(o);
	struct sink_node_options how = { .grain = FILE_GRAIN };

	if (o->spec.qcow2)
		how = (struct sink_node_options){ .grain = (uint32_t)o->spec.cluster,
						  .compress = o->spec.packing != OUTPUT_STORED };
	else if (place.device)
		how = (struct sink_node_options){ .grain = DEVICE_GRAIN };
	how.file = o->file ? target_fd(o->file) : o->device;
	return open_sink(o, &place, &how, errp);
}

static int
new_file(struct output *o, struct error **errp)
{
	const struct output_spec *s = &o->spec;
	bool fresh;

	if (s->partial) {
		if (target_partial(s->folder, s->name, s->force, &o->file, &fresh, errp) < 0)
			return -1;
		if (fresh)
			o->start = 0;
		return 0;
	}
	return s->folder < 0 ? target_new(s->name, s->force, &o->file, errp)
			     : target_new_in(s->folder, s->name, false, &o->file, errp);
}

/* Cut off what lies behind start; the rest of the disk is a hole. */
static int
size_file(struct output *o, struct error **errp)
{
	int fd = target_fd(o->file);
	struct stat st;

	if (o->spec.qcow2 && o->start)
		return 0;
	if (fstat(fd, &st) == 0 && (uint64_t)st.st_size < o->start)
		return damaged(o, errp);
	if (ftruncate(fd, (off_t)o->start) == 0 &&
	    (o->spec.qcow2 || ftruncate(fd, (off_t)o->size) == 0))
		return 0;
	error_set_errno(errp, errno, "Could not make '%s' as large as the disk", o->spec.name);
	return -1;
}

static int
open_file(struct output *o, struct error **errp)
{
	uint64_t start = o->start;

	if (new_file(o, errp) < 0)
		return -1;
	if (o->start != start)
		return error_set(errp, "The partial file of '%s' has vanished; remove the record "
				 "of how far it was to begin anew", o->spec.name);
	return size_file(o, errp);
}

int
output_open(const struct output_spec *spec, uint64_t size, uint64_t start, struct output **ret,
	    struct error **errp)
{
	struct output *o = calloc(1, sizeof(*o));
	int r = 0;

	if (!o)
		return error_set(errp, "Cannot allocate memory");
	o->spec = *spec;
	o->size = size;
	o->start = start;
	o->device = -1;
	switch (spec->kind) {
	case OUTPUT_STREAM:
		r = sink_stream_new(STDOUT_FILENO, spec->stop, &o->sink, errp);
		break;
	case OUTPUT_NBD:
		r = sink_nbd_new(spec->name, size, spec->stop, &o->sink, errp);
		break;
	case OUTPUT_DEVICE:
		r = device_claim(spec->name, size, &o->device, errp);
		break;
	case OUTPUT_FILE:
		r = open_file(o, errp);
		break;
	}
	if (r == 0 && spec->qcow2 && !start)
		r = format_qcow2(o, errp);
	if (r < 0) {
		output_free(o);
		return -1;
	}
	*ret = o;
	return 0;
}

/* Over a backing file, what is not written would show that. */
bool
output_starts_zeroed(const struct output_spec *spec)
{
	return spec->kind == OUTPUT_FILE && !spec->backing;
}

int
output_begin(struct output *o, struct error **errp)
{
	return o->sink ? 0 : open_node(o, errp);
}

int
output_check_space(const struct output *o, uint64_t bytes, struct error **errp)
{
	return o->file ? target_check_space(o->file, bytes, errp) : 0;
}

struct sink *
output_sink(struct output *o)
{
	return o->sink;
}

/* ---- finishing ---- */

struct step {
	struct output *o;
	struct error **errp;
};

static int
sync_work(void *arg)
{
	struct step *s = arg;

	return target_sync(s->o->file, s->errp);
}

static int
publish_work(void *arg)
{
	struct step *s = arg;

	return target_publish(s->o->file, s->errp);
}

static int
close_sink(struct output *o)
{
	int r = sink_free(o->sink);

	o->sink = NULL;
	return r;
}

int
output_finish(struct output *o, struct error **errp)
{
	struct step step = { o, errp };
	int r = o->sink->ops->flush(o->sink), closing = close_sink(o);

	if (r == 0)
		r = closing;
	if (r < 0) {
		error_set_errno(errp, r, "Could not write '%s'", o->spec.name);
		return -1;
	}
	return o->file ? work_run(sync_work, &step) : 0;
}

static int
drop_work(void *arg)
{
	struct output *o = arg;

	return posix_fadvise(target_fd(o->file), 0, 0, POSIX_FADV_DONTNEED);
}

int
output_reopen(struct output *o, const char **ret_how, struct error **errp)
{
	struct sink_node_options how = { .read_only = true, .grain = FILE_GRAIN, .file = -1 };
	struct options_place place = place_of(o);

	if (o->spec.kind == OUTPUT_NBD) {
		*ret_how = "from the server, which may have it in a cache";
		return sink_nbd_new(o->spec.name, o->size, o->spec.stop, &o->sink, errp);
	}
	place.read_only = place.direct = true;
	*ret_how = "past the cache";
	if (open_sink(o, &place, &how, NULL) == 0)
		return 0;
	if (o->file)
		(void)work_run(drop_work, o);
	*ret_how = "after the cache was asked to forget it";
	place.direct = false;
	return open_sink(o, &place, &how, errp);
}

void
output_close(struct output *o)
{
	close_sink(o);
}

int
output_publish(struct output *o, struct error **errp)
{
	struct step step = { o, errp };

	return o->file ? work_run(publish_work, &step) : 0;
}

void
output_free(struct output *o)
{
	if (!o)
		return;
	close_sink(o);
	target_free(o->file);
	cleanup_close(&o->device);
	free(o);
}
