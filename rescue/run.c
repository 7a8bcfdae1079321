/* SPDX-License-Identifier: Apache-2.0 */
/* The order of things, and what a failure at each of them leaves:
 *
 *	read the headers of the chain, look at the target's place	nothing
 *	open the chain read-only, with QEMU's locks			nothing
 *	find each encrypted layer its key				nothing
 *	make the target, without a name (rescue/target.h)		nothing
 *	copy, flush, wait for the disk					nothing
 *	give the target its name, wait for the disk			the target
 *
 * A signal stops the copy between two pieces and then takes the same way out
 * as an error.  The second one acts at once. */
#include "rescue/run.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "aio/disk.h"
#include "aio/loop.h"
#include "aio/timer.h"
#include "aio/work.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/io.h"
#include "block/node.h"
#include "block/open.h"
#include "block/root.h"
#include "rescue/image.h"
#include "rescue/keyring.h"
#include "rescue/layer.h"
#include "rescue/list.h"
#include "rescue/options.h"
#include "rescue/pipeline.h"
#include "rescue/progress.h"
#include "rescue/secret.h"
#include "rescue/target.h"
#include "schema/types.h"

enum {
	LOOPS_MAX = 8,
	RAW_GRAIN = 4096,
	QCOW2_CLUSTER = 65536,
	SHOW_NS = 200 * 1000 * 1000,
};

struct run {
	const struct run_options *o;
	struct error **errp;
	int status;

	struct image_chain chain;
	struct layers layers;
	struct node *source_node, *target_node;
	struct root *source;
	struct target *target;
	struct pipeline pipe;
	struct progress progress;
	struct timer timer;
	bool copying;
	int signo;		/* that ended it; 0: none */
};

/* ---- before anything runs ---- */

static int
check_chain(struct run *r)
{
	unsigned encrypted = 0;

	for (unsigned i = 0; i < r->chain.count; i++) {
		const struct image *im = r->chain.layer[i];

		if (r->o->target && target_is_same_file(r->o->target, im->dev, im->ino))
			return error_set(r->errp, "'%s' is the same file as '%s', which is to be "
					 "read; it is never overwritten", r->o->target,
					 im->filename);
		if (im->format == IMAGE_LUKS && im->version != 1)
			return error_set(r->errp, "%s is a LUKS volume of version %u, which only "
					 "cryptsetup decrypts", im->filename, im->version);
		encrypted += im->encryption != CIPHER_NONE;
	}
	if (!encrypted)
		return error_set(r->errp, "%s: nothing in it or behind it is encrypted, there is "
				 "nothing to rescue", r->o->source);
	return 0;
}

static int
prepare(struct run *r)
{
	if (image_chain_read(r->o->source, &r->chain, r->errp) < 0)
		return -1;
	if (!r->o->target)
		list_print(&r->chain, stdout);
	if (check_chain(r) < 0)
		return -1;
	layer_init(&r->layers, &r->chain);
	return r->o->target ? target_check_place(r->o->target, r->o->force, r->errp) : 0;
}

/* ---- signals and the display ---- */

static void
on_timer(struct timer *t)
{
	struct run *r = CONTAINER_OF(t, struct run, timer);

	progress_show(&r->progress);
	timer_set(t, clock_ns() + SHOW_NS);
}

static void
on_end_signal(int signo, void *arg)
{
	struct run *r = arg;

	r->signo = signo;
	pipeline_stop(&r->pipe);
	/* The next one need not wait for a slow disk. */
	loop_signal(signo, NULL, NULL);
}

static void
on_status_signal(int signo, void *arg)
{
	struct run *r = arg;

	(void)signo;
	if (r->copying)
		progress_print_status(&r->progress);
}

static const int end_signals[] = { SIGINT, SIGTERM, SIGHUP };

static int
watch_signals(struct run *r)
{
	for (size_t i = 0; i < ARRAY_SIZE(end_signals); i++) {
		struct sigaction act;

		/* nohup stays nohup. */
		sigaction(end_signals[i], NULL, &act);
		if (act.sa_handler == SIG_IGN)
			continue;
		if (loop_signal(end_signals[i], on_end_signal, r) < 0)
			return error_set(r->errp, "Cannot watch for signals");
	}
	return 0;
}

/* ---- source ---- */

static int
open_source(struct run *r)
{
	struct open_policy policy = { .decryptor = &layer_decryptor,
				      .decryptor_user = &r->layers, .follow_images = true };
	CLEANUP(BlockdevOptions_freep) struct BlockdevOptions *o = options_for_chain(&r->chain);

	if (!o)
		return error_set(r->errp, "Cannot allocate memory");
	if (node_open(o, &policy, &r->source_node, r->errp) < 0)
		return -1;
	/* Nobody may write while we read: as qemu-img convert has it. */
	if (root_new(r->source_node, "root", PERM_CONSISTENT_READ,
		     PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED, NULL, NULL, &r->source,
		     r->errp) < 0)
		return -1;
	return layer_bind(&r->layers, &r->chain, r->source_node, r->errp);
}

static int
unlock(struct run *r)
{
	for (unsigned i = 0; i < r->layers.count; i++) {
		switch (keyring_unlock(r->o->keys, &r->layers.layer[i], r->errp)) {
		case KEYRING_OK:
			break;
		case KEYRING_WRONG:
			r->status = RUN_WRONG_KEY;
			return -1;
		case KEYRING_UNKNOWN:
			r->status = RUN_NOT_JUDGED;
			return -1;
		default:
			return -1;
		}
	}
	if (!secret_all_locked() && r->o->say)
		r->o->say("note: the limit on locked memory (ulimit -l) is too low to keep keys "
			  "out of swap");
	return 0;
}

/* ---- target ---- */

static int
make_qcow2(struct run *r)
{
	const char *path = target_open_path(r->target);
	CLEANUP(BlockdevCreateOptions_freep) struct BlockdevCreateOptions *create = NULL;
	CLEANUP(BlockdevOptions_freep) struct BlockdevOptions *o = NULL;
	const struct driver *qcow2 = driver_find("qcow2");

	create = options_create_qcow2(path, io_size(r->source));
	o = options_open_qcow2(path);
	if (!create || !o)
		return error_set(r->errp, "Cannot allocate memory");
	if (qcow2->create(create, r->errp) < 0 ||
	    node_open(o, &open_policy_default, &r->target_node, r->errp) < 0)
		return -1;
	r->pipe.grain = QCOW2_CLUSTER;
	return root_new(r->target_node, "root", PERM_WRITE | PERM_CONSISTENT_READ, PERM_ALL, NULL,
			NULL, &r->pipe.target, r->errp);
}

static int
make_raw(struct run *r)
{
	r->pipe.grain = RAW_GRAIN;
	r->pipe.raw_fd = target_fd(r->target);
	if (ftruncate(r->pipe.raw_fd, (off_t)io_size(r->source)) < 0) {
		error_set_errno(r->errp, errno, "Could not make '%s' as large as the disk",
				r->o->target);
		return -1;
	}
	return 0;
}

static int
make_target(struct run *r, uint64_t *ret_bytes)
{
	int err;

	r->pipe.source = r->source;
	r->pipe.progress = &r->progress;
	err = pipeline_measure(&r->pipe, ret_bytes);
	if (err < 0) {
		error_set_errno(r->errp, err, "Could not read '%s' at byte %" PRIu64 " of the disk",
				r->o->source, r->pipe.error_at);
		return -1;
	}
	if (target_new(r->o->target, r->o->force, &r->target, r->errp) < 0 ||
	    target_check_space(r->target, *ret_bytes, r->errp) < 0)
		return -1;
	return (r->o->format == RUN_QCOW2 ? make_qcow2 : make_raw)(r);
}

/* ---- copying ---- */

static int
copy(struct run *r, uint64_t bytes)
{
	int err;

	progress_start(&r->progress, r->o->progress, bytes);
	r->timer.fn = on_timer;
	timer_set(&r->timer, clock_ns() + SHOW_NS);
	r->copying = true;
	err = pipeline_run(&r->pipe);
	r->copying = false;
	timer_cancel(&r->timer);
	if (err == 0)
		progress_end(&r->progress);
	else
		progress_clear(&r->progress);
	if (err < 0 && !r->signo)
		error_set_errno(r->errp, err, "Could not %s '%s' at byte %" PRIu64 " of the disk",
				r->pipe.error_in_target ? "write" : "read",
				r->pipe.error_in_target ? r->o->target : r->o->source,
				r->pipe.error_at);
	return err < 0 ? -1 : 0;
}

/* What closing could not store; sources are read only and store nothing. */
static int close_error;

static void
on_close_failed(const char *name, int err)
{
	(void)name;
	close_error = err;
}

static int
flush_qcow2(struct run *r)
{
	int err = io_flush(r->pipe.target);

	root_free(r->pipe.target);
	r->pipe.target = NULL;
	node_unref(r->target_node);
	r->target_node = NULL;
	if (err == 0)
		err = close_error;
	if (err < 0)
		error_set_errno(r->errp, err, "Could not write '%s'", r->o->target);
	return err < 0 ? -1 : 0;
}

static int
sync_work(void *arg)
{
	struct run *r = arg;

	return target_sync(r->target, r->errp);
}

static int
publish_work(void *arg)
{
	struct run *r = arg;

	return target_publish(r->target, r->errp);
}

static int
finish(struct run *r)
{
	if (r->pipe.target && flush_qcow2(r) < 0)
		return -1;
	if (work_run(sync_work, r) < 0)
		return -1;
	/* The last moment for a signal to be in time. */
	return r->signo ? -1 : work_run(publish_work, r);
}

/* ---- all of it ---- */

static int
rescue(struct run *r)
{
	uint64_t bytes;

	if (open_source(r) < 0 || unlock(r) < 0)
		return -1;
	if (!r->o->target)
		return 0;
	/* From here on there may be something to clean up. */
	if (watch_signals(r) < 0 || make_target(r, &bytes) < 0)
		return -1;
	return copy(r, bytes) < 0 || finish(r) < 0 ? -1 : 0;
}

static void
main_co(void *arg)
{
	struct run *r = arg;

	if (rescue(r) == 0)
		r->status = RUN_OK;
	root_free(r->pipe.target);
	node_unref(r->target_node);
	root_free(r->source);
	node_unref(r->source_node);
}

static unsigned
cores(void)
{
	cpu_set_t set;
	int n = sched_getaffinity(0, sizeof(set), &set) < 0 ? 1 : CPU_COUNT(&set);

	return n < 1 ? 1 : n > LOOPS_MAX ? LOOPS_MAX : (unsigned)n;
}

static int
run_loops(struct run *r)
{
	if (loops_start(cores(), 0, r->errp) < 0)
		return -1;
	if (loop_signal(SIGUSR1, on_status_signal, r) < 0 || loop_run_co(main_co, r) < 0)
		error_set(r->errp, "Cannot allocate memory");
	loops_stop();
	return 0;
}

int
run_rescue(const struct run_options *o, struct error **errp)
{
	struct run *r = calloc(1, sizeof(*r));
	int status;

	if (!r) {
		error_set(errp, "Cannot allocate memory");
		return RUN_FAILED;
	}
	r->o = o;
	r->errp = errp;
	r->status = RUN_FAILED;
	/* A limit on file size is an error like others, and a question for the
	 * status that comes too early or too late does no harm. */
	node_close_failed = on_close_failed;
	signal(SIGXFSZ, SIG_IGN);
	signal(SIGUSR1, SIG_IGN);
	if (prepare(r) == 0) {
		if (o->target || o->keys->count)
			run_loops(r);
		else
			r->status = RUN_OK;
	}
	target_free(r->target);
	layer_done(&r->layers);
	image_chain_done(&r->chain);
	status = r->signo && r->status != RUN_OK ? RUN_INTERRUPTED + r->signo : r->status;
	free(r);
	return status;
}
