/* SPDX-License-Identifier: Apache-2.0 */
/* The order of things, and what a failure at each of them leaves:
 *
 *	read the headers of the chain, look at the target's place	nothing
 *	open the chain read-only, with QEMU's locks			nothing
 *	find each encrypted layer its key				nothing
 *	find out how sectors are stored, if that is wanted		nothing
 *	make the targets, files without names (rescue/target.h)		nothing
 *	copy, flush, wait for the disk					nothing
 *	read it back and compare, if that is wanted			nothing
 *	give the map of what was lost its name				the map
 *	give the target its name, wait for the disk			the target
 *
 * If the source is changed meanwhile, that is noticed within a second and ends it; the
 * last look is right before anything gets a name.
 *
 * What is overwritten in place, a device or an NBD export, is half written from the
 * copying on.  With --resume a partial target and its state are left from the making
 * on; what the state says to be done was stable before (rescue/resume.h).
 *
 * A signal stops the copy between two pieces and then takes the same way out
 * as an error.  The second one acts at once. */
#include "rescue/run.h"

#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "aio/loop.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/node.h"
#include "block/open.h"
#include "block/root.h"
#include "rescue/device.h"
#include "rescue/keyring.h"
#include "rescue/leftover.h"
#include "rescue/list.h"
#include "rescue/options.h"
#include "rescue/phase.h"
#include "rescue/run_int.h"
#include "rescue/secret.h"
#include "rescue/survey.h"
#include "schema/types.h"

enum { LOOPS_MAX = 8, LINE = 2048 };

void
run_say(const struct run *r, const char *fmt, ...)
{
	char line[LINE];
	va_list ap;

	if (!r->o->say)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	r->o->say(line);
}

/* ---- before anything runs ---- */

static int
check_chain(struct run *r)
{
	unsigned encrypted = 0;

	for (unsigned i = 0; i < r->chain.count; i++) {
		const struct image *im = r->chain.layer[i];

		if (im->format == IMAGE_LUKS && image_luks_check(im, r->errp) < 0)
			return -1;
		encrypted += im->encryption != CIPHER_NONE;
	}
	if (!encrypted)
		return error_set(r->errp, "%s: nothing in it or behind it is encrypted, there is "
				 "nothing to rescue", r->o->source);
	for (unsigned i = 0; i < r->o->keys->count; i++)
		if (r->o->keys->key[i]->layer >= (int)r->chain.count)
			return error_set(r->errp, "There is no layer %d that %s could be for: %s has "
					 "%u", r->o->keys->key[i]->layer, r->o->keys->key[i]->origin,
					 r->o->source, r->chain.count);
	return 0;
}

static void
tell_leftover(const char *leftover, void *user)
{
	run_say(user, "note: '%s' seems to be left from a run that was killed; unless another one "
		"is at work, remove it", leftover);
}

static int
check_target(struct run *r)
{
	if (output_kind_of(r->o->target) == OUTPUT_FILE)
		leftover_find(r->o->target, tell_leftover, r);
	if (r->o->map)
		leftover_find(r->o->map, tell_leftover, r);
	return plan_check(r->o, &r->chain, r->errp);
}

static int
prepare(struct run *r)
{
	if (image_chain_read(r->o->source, r->o->header, &r->chain, r->errp) < 0)
		return -1;
	if (device_check_streams(&r->chain, r->errp) < 0)
		return -1;
	if (r->o->snapshot &&
	    image_choose_snapshot(r->chain.layer[0], r->o->snapshot, r->errp) < 0)
		return -1;
	if (check_chain(r) < 0)
		return -1;
	layer_init(&r->layers, &r->chain);
	return r->o->target ? check_target(r) : 0;
}

/* ---- signals ---- */

static void
on_end_signal(int signo, void *arg)
{
	struct run *r = arg;

	r->signo = signo;
	plan_stop(&r->plan);
	/* The next one need not wait for a slow disk. */
	loop_signal(signo, NULL, NULL);
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

/* Drivers say what is wrong with an image, and not always with which. */
static void
name_source(const struct run *r)
{
	if (r->errp && *r->errp && !strstr(error_text(*r->errp), r->o->source))
		error_prepend(r->errp, "%s: ", r->o->source);
}

static int
open_source(struct run *r)
{
	const struct image_snapshot *shown = r->chain.layer[0]->shown;
	struct open_snapshot snapshot = { shown ? shown->id : NULL, shown ? shown->name : NULL };
	struct open_policy policy = { .decryptor = &layer_decryptor,
				      .decryptor_user = &r->layers, .follow_images = true,
				      .snapshot = shown ? &snapshot : NULL,
				      .table_memory = min_u64(OPTIONS_TABLE_MEMORY,
							      OPTIONS_CHAIN_MEMORY /
							      r->chain.count) };
	CLEANUP(BlockdevOptions_freep) struct BlockdevOptions *o = options_for_chain(&r->chain);

	if (!o)
		return error_set(r->errp, "Cannot allocate memory");
	if (node_open(o, &policy, &r->source_node, r->errp) < 0) {
		name_source(r);
		return -1;
	}
	/* Nobody may write while we read: as qemu-img convert has it. */
	if (root_new(r->source_node, "root", PERM_CONSISTENT_READ,
		     PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED, NULL, NULL, &r->source,
		     r->errp) < 0)
		return -1;
	return layer_bind(&r->layers, &r->chain, r->source_node, r->errp);
}

static int
unlock_layer(struct run *r, unsigned i, int *status, struct error **errp)
{
	switch (keyring_unlock(r->o->keys, &r->layers.layer[i], errp)) {
	case KEYRING_OK:
		return 0;
	case KEYRING_WRONG:
		*status = RUN_WRONG_KEY;
		return -1;
	case KEYRING_UNKNOWN:
		*status = RUN_NOT_JUDGED;
		return -1;
	default:
		return -1;
	}
}

/* The first layer without a key ends it, unless all that is wanted is to know which
 * layers those are. */
static int
unlock(struct run *r)
{
	int ret = 0;

	for (unsigned i = 0; i < r->layers.count; i++) {
		CLEANUP(error_freep) struct error *err = NULL;
		int status = RUN_FAILED;

		if (unlock_layer(r, i, &status, &err) == 0)
			continue;
		if (ret < 0) {
			run_say(r, "%s", error_text(err));
			continue;
		}
		ret = -1;
		r->status = status;
		error_propagate(r->errp, STEAL(err));
		if (r->o->target)
			return -1;
	}
	if (!secret_all_locked())
		run_say(r, "note: the limit on locked memory (ulimit -l) is too low to keep keys "
			"out of swap");
	return ret;
}

/* ---- how sectors are stored ---- */

static int
survey(struct run *r)
{
	struct survey s = { &r->layers, &r->progress, &r->signo };

	run_start_progress(r, "looking: ", survey_work(&s));
	if (run_end_progress(r, survey_run(&s, r->errp)) < 0)
		return -1;
	survey_tell(&r->layers, r->o->say);
	return 0;
}

/* ---- all of it ---- */

static void
say_resumed(const struct run *r)
{
	char text[PROGRESS_BYTES];
	uint64_t done = 0;

	for (unsigned i = 0; i < r->plan.count; i++)
		done += r->plan.copy[i].start;
	if (!done)
		return;
	progress_format_bytes(done, text);
	run_say(r, "going on: %s of the disk were done by an earlier run", text);
}

static int
rescue(struct run *r)
{
	phase_set("opening the images\n");
	if (open_source(r) < 0)
		return -1;
	phase_set("looking for the keys\n");
	if (unlock(r) < 0)
		return -1;
	keyring_forget(r->o->keys);
	/* From here on it takes time, and there may be something to clean up. */
	if (watch_signals(r) < 0 || (r->o->mixed && survey(r) < 0))
		return -1;
	if (!r->o->target) {
		r->status = RUN_OK;
		return 0;
	}
	phase_set("looking what there is to copy\n");
	if (plan_make(&r->plan, r->o, &r->chain, &r->layers, r->source_node, &r->progress,
		      r->errp) < 0)
		return -1;
	say_resumed(r);
	if (r->signo || plan_open(&r->plan, r->errp) < 0)
		return -1;
	return run_copy(r) < 0 ? -1 : run_finish(r);
}

/* What there is now where the target was to be; NULL: what was there before. */
static const char *
left(const struct run *r, char buf[static LINE])
{
	enum output_kind kind = r->o->target ? output_kind_of(r->o->target) : OUTPUT_FILE;
	char size[PROGRESS_BYTES];

	if (kind == OUTPUT_FILE && plan_kept(&r->plan)) {
		progress_format_bytes(plan_kept(&r->plan), size);
		snprintf(buf, LINE, "%s of the disk are kept, and the same command goes on", size);
		return buf;
	}
	if (kind == OUTPUT_FILE || r->stage == STAGE_NOTHING)
		return NULL;
	if (r->stage == STAGE_COPIED)
		return "all of the target was written";
	return kind == OUTPUT_STREAM ? "a part of the disk was written"
				     : "the target is half written";
}

/* Nothing is lost of a run that can be resumed, but it is in doubt. */
static void
tell_changed(struct run *r, const char *what)
{
	if (r->o->resume)
		error_append(&r->changed, "; the same command%s goes on, and compares all of it",
			     r->o->verify ? "" : " with --verify");
	else if (what)
		error_append(&r->changed, "; %s", what);
	error_propagate(r->errp, r->changed);
}

/* What came behind a signal or a change of the source is but its consequence. */
static void
explain_end(struct run *r)
{
	char buf[LINE];
	const char *what = left(r, buf);

	if (r->errp && (r->signo || r->changed))
		error_freep(r->errp);
	if (r->signo) {
		if (!what)
			what = r->o->resume ? "the same command goes on" : "nothing was left behind";
		error_set(r->errp, "interrupted, %s", what);
	} else if (r->changed) {
		tell_changed(r, what);
	} else if (what) {
		error_append(r->errp, "; %s", what);
	}
}

static void
report(struct run *r)
{
	struct run_view v = { r->o, &r->chain, &r->layers, &r->plan,
			      r->errp ? *r->errp : NULL };

	if (r->o->report && !r->reported)
		r->o->report(&v, r->o->report_user);
	r->reported = true;
}

static void
main_co(void *arg)
{
	struct run *r = arg;

	if (rescue(r) < 0)
		explain_end(r);
	report(r);
	plan_done(&r->plan);
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
	if (loop_run_co(main_co, r) < 0)
		error_set(r->errp, "Cannot allocate memory");
	loops_stop();
	return 0;
}

int
run_rescue(const struct run_options *o, struct error **errp)
{
	struct run *r = calloc(1, sizeof(*r));
	int status;

	if (!r || plan_init(&r->plan, errp) < 0) {
		if (!r)
			error_set(errp, "Cannot allocate memory");
		free(r);
		return RUN_FAILED;
	}
	r->o = o;
	r->errp = errp;
	r->status = RUN_FAILED;
	/* Tables are loaded by one thread and dropped by another: each thread's part of the
	 * heap would come to hold as much as all of them. */
	mallopt(M_ARENA_MAX, 2);
	/* A limit on file size is an error like others. */
	signal(SIGXFSZ, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	phase_set("reading headers\n");
	if (prepare(r) == 0) {
		if (o->target || o->keys->count || o->keys->words)
			run_loops(r);
		else
			r->status = RUN_OK;
	}
	if (!o->target && !o->no_list)
		list_print(&r->chain, o, stdout);
	report(r);
	plan_done(&r->plan);
	layer_done(&r->layers);
	image_chain_done(&r->chain);
	status = r->signo && r->status == RUN_FAILED ? RUN_INTERRUPTED + r->signo : r->status;
	free(r);
	return status;
}
