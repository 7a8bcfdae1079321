/* SPDX-License-Identifier: Apache-2.0 */
/* The life cycle, with jobs that move no data. */
#include "tests/unit/aio_test.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "aio/co.h"
#include "aio/timer.h"
#include "base/error.h"
#include "job/job.h"
#include "job/job_status.h"

/* ---- a log of events, one word each ---- */

static char events[4096];

static void __attribute__((format(printf, 1, 2)))
note(const char *fmt, ...)
{
	size_t at = strlen(events);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(events + at, sizeof(events) - at, fmt, ap);
	va_end(ap);
}

static void
on_status(const struct job *j)
{
	note("%s:%s ", j->id, JobStatus_str(j->status));
}

static void
on_completed(const struct job *j)
{
	note("%s:COMPLETED%s%s ", j->id, job_error_text(j) ? "=" : "",
	     job_error_text(j) ? job_error_text(j) : "");
}

static void
on_cancelled(const struct job *j)
{
	note("%s:CANCELLED ", j->id);
}

static void
on_ready(const struct job *j)
{
	note("%s:READY ", j->id);
}

static void
on_pending(const struct job *j)
{
	note("%s:PENDING ", j->id);
}

static void
on_error(const struct job *j, enum IoOperationType op, enum BlockErrorAction action)
{
	note("%s:ERROR=%s,%s ", j->id, IoOperationType_str(op),
	     BlockErrorAction_str(action));
}

static const struct job_events log_events = { on_status,  on_completed, on_cancelled,
					      on_ready,	  on_pending,	on_error };

static void
expect(const char *what)
{
	assert_string_equal(events, what);
	events[0] = '\0';
}

/* ---- a job that does what its script says ---- */

struct dummy {
	struct job job;
	int result, prepare_result;
	bool waits;			/* runs until something happens */
	bool gets_ready;
	bool errs;			/* meets an error, which stops it, first */
	bool completing;
	bool done;			/* whoever waits may let it end */
	bool is_deaf;			/* notices nothing until the test says so */
	struct co_queue hears;
};

static int
dummy_run(struct job *j, struct error **errp)
{
	struct dummy *d = (struct dummy *)j;

	if (d->errs) {
		note("acts=%s ", BlockErrorAction_str(job_io_error(
			j, BLOCKDEV_ON_ERROR_ENOSPC, IO_OPERATION_TYPE_WRITE, -ENOSPC)));
		job_pause_point(j);
	}
	if (d->is_deaf)
		co_queue_wait(&d->hears, NULL);
	if (d->gets_ready)
		job_set_ready(j);
	while ((d->waits && !d->done) || (d->gets_ready && !d->completing)) {
		job_sleep(j, 3600 * INT64_C(1000000000));
		if (job_is_cancelled(j) || job_cancel_requested(j))
			break;
	}
	if (d->result == -EDOM)
		error_set(errp, "a text of its own");
	return d->result;
}

static int
dummy_prepare(struct job *j, struct error **errp)
{
	(void)errp;
	note("prepare ");
	co_yield();
	return ((struct dummy *)j)->prepare_result;
}

static void
dummy_commit(struct job *j)
{
	(void)j;
	note("commit ");
}

static void
dummy_abort(struct job *j)
{
	(void)j;
	note("abort ");
}

static void
dummy_clean(struct job *j)
{
	(void)j;
	note("clean ");
}

static void
dummy_complete(struct job *j)
{
	((struct dummy *)j)->completing = true;
}

static bool
dummy_cancel(struct job *j, bool force)
{
	return force || !job_is_ready(j);
}

static const struct job_kind dummy_kind = {
	.type = JOB_TYPE_COMMIT,
	.size = sizeof(struct dummy),
	.run = dummy_run,
	.prepare = dummy_prepare,
	.commit = dummy_commit,
	.abort = dummy_abort,
	.clean = dummy_clean,
	.complete = dummy_complete,
	.cancel = dummy_cancel,
};

static const struct job_kind plain_kind = {
	.type = JOB_TYPE_CREATE,
	.size = sizeof(struct dummy),
	.run = dummy_run,
};

static struct dummy *
make(const struct job_kind *kind, struct job_options o)
{
	struct error *err = NULL;
	struct job *j = NULL;

	job_set_events(&log_events);
	if (job_new(kind, &o, &j, &err) < 0)
		fail_msg("%s", error_text(err));
	return (struct dummy *)j;
}

static struct dummy *
make_simple(const char *id)
{
	return make(&dummy_kind, (struct job_options){ .id = id });
}

static void
start(struct dummy *d)
{
	assert_int_equal(job_start(&d->job, NULL), 0);
}

/* Let everything happen that can. */
static void
settle(void)
{
	for (int i = 0; i < 20; i++)
		co_yield();
}

static void
refused(int r, struct error **err, const char *text)
{
	assert_int_equal(r, -1);
	assert_string_equal(error_text(*err), text);
	error_free(*err);
	*err = NULL;
}

/* Each test is a coroutine. */
#define CO_CASE(name)                                                          \
	static void name##_co(void *arg);                                      \
	static void name(void **state)                                         \
	{                                                                      \
		(void)state;                                                   \
		events[0] = '\0';                                              \
		run(name##_co, NULL);                                          \
		assert_null(job_next(NULL));                                   \
	}                                                                      \
	static void name##_co(void *arg __attribute__((unused)))

/* ---- tests ---- */

CO_CASE(a_job_goes_through_its_states)
{
	start(make_simple("j"));
	expect("j:created j:running ");
	settle();
	expect("j:waiting j:pending prepare commit clean j:COMPLETED j:concluded j:null ");
}

CO_CASE(a_failing_job_aborts_and_says_why)
{
	struct dummy *d = make_simple("j");

	d->result = -EIO;
	start(d);
	settle();
	expect("j:created j:running j:aborting abort clean "
	       "j:COMPLETED=Input/output error j:concluded j:null ");
	assert_string_equal(job_history(0)->id, "j");
	assert_string_equal(job_history(0)->error, "Input/output error");
}

CO_CASE(a_text_of_the_kind_is_kept)
{
	struct dummy *d = make_simple("j");

	d->result = -EDOM;
	start(d);
	settle();
	expect("j:created j:running j:aborting abort clean "
	       "j:COMPLETED=a text of its own j:concluded j:null ");
}

CO_CASE(a_failing_prepare_aborts)
{
	struct dummy *d = make_simple("j");

	d->prepare_result = -ENOSPC;
	start(d);
	settle();
	expect("j:created j:running j:waiting j:pending prepare j:aborting abort clean "
	       "j:COMPLETED=No space left on device j:concluded j:null ");
}

CO_CASE(ids_are_checked)
{
	struct job_options o = { .id = "9j" };
	struct dummy *d = make_simple("j");
	struct error *err = NULL;
	struct job *j;

	refused(job_new(&dummy_kind, &o, &j, &err), &err, "Invalid job ID '9j'");
	o.id = NULL;
	refused(job_new(&dummy_kind, &o, &j, &err), &err, "Invalid job ID ''");
	o.id = "a b";
	refused(job_new(&dummy_kind, &o, &j, &err), &err, "Invalid job ID 'a b'");
	o.id = "j";
	refused(job_new(&dummy_kind, &o, &j, &err), &err, "Job ID 'j' already in use");
	job_fail_early(&d->job);
	expect("j:created clean j:null ");
}

CO_CASE(a_negative_speed_fails_early)
{
	struct job_options o = { .id = "j", .speed = -1 };
	struct error *err = NULL;
	struct job *j;

	refused(job_new(&dummy_kind, &o, &j, &err), &err,
		"Parameter 'speed' expects a non-negative value");
	expect("j:created clean j:null ");
}

CO_CASE(unknown_jobs_have_their_classes)
{
	struct error *err = NULL;

	assert_null(job_find("x", &err));
	assert_int_equal(error_get_class(err), ERROR_GENERIC);
	assert_string_equal(error_text(err), "Job not found");
	error_free(err);
	err = NULL;
	assert_null(job_find_block("x", &err));
	assert_int_equal(error_get_class(err), ERROR_DEVICE_NOT_ACTIVE);
	assert_string_equal(error_text(err), "Block job 'x' not found");
	error_free(err);
}

CO_CASE(a_create_job_is_no_block_job)
{
	struct dummy *d = make(&plain_kind, (struct job_options){ .id = "c" });

	assert_null(job_find_block("c", NULL));
	assert_non_null(job_find("c", NULL));
	start(d);
	settle();
	expect("c:created c:running c:waiting c:pending c:concluded c:null ");
}

CO_CASE(manual_steps_wait_for_the_client)
{
	struct dummy *d = make(&dummy_kind, (struct job_options){
						    .id = "j",
						    .manual_finalize = true,
						    .manual_dismiss = true });
	struct error *err = NULL;

	start(d);
	settle();
	expect("j:created j:running j:waiting j:pending j:PENDING ");
	refused(job_user_pause(&d->job, &err), &err,
		"Job 'j' in state 'pending' cannot accept command verb 'pause'");
	refused(job_user_resume(&d->job, &err), &err,
		"Can't resume a job that was not paused");
	refused(job_user_dismiss(&d->job, &err), &err,
		"Job 'j' in state 'pending' cannot accept command verb 'dismiss'");
	assert_int_equal(job_user_finalize(&d->job, NULL), 0);
	expect("prepare commit clean j:COMPLETED j:concluded ");
	refused(job_user_cancel(&d->job, true, &err), &err,
		"Job 'j' in state 'concluded' cannot accept command verb 'cancel'");
	assert_int_equal(job_user_dismiss(&d->job, NULL), 0);
	expect("j:null ");
}

CO_CASE(a_pending_job_can_be_cancelled)
{
	struct dummy *d = make(&dummy_kind, (struct job_options){
						    .id = "j", .manual_finalize = true });

	start(d);
	settle();
	events[0] = '\0';
	assert_int_equal(job_user_cancel(&d->job, true, NULL), 0);
	expect("j:aborting abort clean j:CANCELLED j:concluded j:null ");
}

CO_CASE(pause_and_resume)
{
	struct dummy *d = make_simple("j");
	struct error *err = NULL;

	d->waits = true;
	start(d);
	settle();
	assert_int_equal(job_user_pause(&d->job, NULL), 0);
	expect("j:created j:running j:paused ");
	assert_true(job_should_stop(&d->job));
	refused(job_user_pause(&d->job, &err), &err, "Job is already paused");
	refused(job_user_complete(&d->job, &err), &err,
		"Job 'j' in state 'paused' cannot accept command verb 'complete'");
	assert_int_equal(job_user_resume(&d->job, NULL), 0);
	expect("j:running ");
	refused(job_user_resume(&d->job, &err), &err,
		"Can't resume a job that was not paused");
	d->done = true;
	job_kick(&d->job);
	settle();
	expect("j:waiting j:pending prepare commit clean j:COMPLETED j:concluded j:null ");
}

CO_CASE(a_paused_job_can_be_cancelled)
{
	struct dummy *d = make_simple("j");

	d->waits = true;
	start(d);
	settle();
	assert_int_equal(job_user_pause(&d->job, NULL), 0);
	events[0] = '\0';
	assert_int_equal(job_user_cancel(&d->job, true, NULL), 0);
	settle();
	expect("j:running j:aborting abort clean j:CANCELLED j:concluded j:null ");
	assert_string_equal(job_history(0)->error, "Operation canceled");
}

CO_CASE(a_job_cancelled_before_its_first_step_never_runs)
{
	struct dummy *d = make_simple("j");

	d->result = -EDOM;
	start(d);
	assert_int_equal(job_user_cancel(&d->job, true, NULL), 0);
	settle();
	expect("j:created j:running j:aborting abort clean j:CANCELLED j:concluded j:null ");
}

CO_CASE(a_ready_job_completes_when_told)
{
	struct dummy *d = make_simple("j");

	d->gets_ready = true;
	start(d);
	settle();
	expect("j:created j:running j:ready j:READY ");
	assert_int_equal(job_user_pause(&d->job, NULL), 0);
	expect("j:standby ");
	assert_int_equal(job_user_complete(&d->job, NULL), 0);
	settle();
	expect("");
	assert_int_equal(job_user_resume(&d->job, NULL), 0);
	settle();
	expect("j:ready j:waiting j:pending prepare commit clean j:COMPLETED j:concluded "
	       "j:null ");
}

CO_CASE(a_soft_cancel_of_a_ready_job_ends_well)
{
	struct dummy *d = make_simple("j");

	d->gets_ready = true;
	start(d);
	settle();
	events[0] = '\0';
	assert_int_equal(job_user_cancel(&d->job, false, NULL), 0);
	settle();
	expect("j:waiting j:pending prepare commit clean j:COMPLETED j:concluded j:null ");
}

CO_CASE(an_error_stops_the_job_until_resumed)
{
	struct dummy *d = make_simple("j");
	struct BlockJobInfo *i;

	d->errs = true;
	start(d);
	settle();
	expect("j:created j:running j:ERROR=write,stop acts=stop j:paused ");
	i = job_block_info(&d->job);
	assert_int_equal(i->io_status, BLOCK_DEVICE_IO_STATUS_NOSPACE);
	assert_true(i->paused);
	BlockJobInfo_free(i);
	assert_int_equal(job_user_resume(&d->job, NULL), 0);
	settle();
	expect("j:running j:waiting j:pending prepare commit clean j:COMPLETED j:concluded "
	       "j:null ");
}

CO_CASE(a_group_completes_together)
{
	struct job_group *g = job_group_new();
	struct dummy *a = make(&dummy_kind, (struct job_options){ .id = "a", .group = g });
	struct dummy *b = make(&dummy_kind, (struct job_options){ .id = "b", .group = g });

	job_group_unref(g);
	b->waits = true;
	start(a);
	start(b);
	settle();
	expect("a:created b:created a:running b:running a:waiting ");
	b->done = true;
	job_kick(&b->job);
	settle();
	expect("b:waiting a:pending b:pending prepare prepare "
	       "commit clean a:COMPLETED a:concluded a:null "
	       "commit clean b:COMPLETED b:concluded b:null ");
}

CO_CASE(one_failure_takes_the_group_along)
{
	struct job_group *g = job_group_new();
	struct dummy *a = make(&dummy_kind, (struct job_options){ .id = "a", .group = g });
	struct dummy *b = make(&dummy_kind, (struct job_options){ .id = "b", .group = g });

	make(&dummy_kind, (struct job_options){ .id = "c", .group = g });
	job_group_unref(g);
	a->waits = true;
	b->result = -EIO;
	start(a);
	start(b);
	settle();
	expect("a:created b:created c:created a:running b:running b:aborting "
	       "a:aborting abort clean a:CANCELLED a:concluded a:null "
	       "abort clean b:COMPLETED=Input/output error b:concluded b:null "
	       "c:aborting abort clean c:concluded c:null ");
}

CO_CASE(quit_cancels_and_dismisses_all)
{
	struct dummy *a = make_simple("a");
	struct dummy *b = make(&dummy_kind, (struct job_options){
						    .id = "b", .manual_dismiss = true });
	struct dummy *c = make(&dummy_kind, (struct job_options){
						    .id = "c", .manual_finalize = true });

	a->waits = true;
	start(a);
	start(b);
	start(c);
	settle();
	assert_true(job_cancel_all(clock_ns() + (int64_t)60 * 1000000000));
}

CO_CASE(quit_does_not_wait_for_ever)
{
	struct dummy *d = make_simple("j");

	d->is_deaf = true;
	start(d);
	settle();
	assert_false(job_cancel_all(clock_ns() + 1000000));
	co_queue_wake_all(&d->hears);
	assert_true(job_cancel_all(INT64_MAX));
}

CO_CASE(the_history_is_bounded)
{
	char id[16];

	for (int i = 0; i < JOB_HISTORY_MAX + 10; i++) {
		snprintf(id, sizeof(id), "h%d", i);
		start(make_simple(id));
		settle();
		events[0] = '\0';
	}
	assert_string_equal(job_history(0)->id, id);
	assert_null(job_history(0)->error);
	assert_non_null(job_history(JOB_HISTORY_MAX - 1));
	assert_null(job_history(JOB_HISTORY_MAX));
}

static void
the_limit_spreads_bytes_over_time(void **state)
{
	struct ratelimit l;

	(void)state;
	ratelimit_init(&l);
	assert_int_equal(ratelimit_take(&l, UINT64_MAX), 0);
	assert_int_equal(ratelimit_portion(&l), UINT64_MAX);
	ratelimit_set(&l, 1000);
	assert_int_equal(ratelimit_portion(&l), 100);
	assert_int_equal(ratelimit_take(&l, 100000), 0);
	assert_in_range(ratelimit_take(&l, 1), 1, (uintmax_t)100 * 1000000000);
	assert_true(ratelimit_take(&l, 1) > (int64_t)60 * 1000000000);
	ratelimit_set(&l, 2000);
	assert_int_equal(ratelimit_take(&l, 1), 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(a_job_goes_through_its_states),
		CO_TEST(a_failing_job_aborts_and_says_why),
		CO_TEST(a_text_of_the_kind_is_kept),
		CO_TEST(a_failing_prepare_aborts),
		CO_TEST(ids_are_checked),
		CO_TEST(a_negative_speed_fails_early),
		CO_TEST(unknown_jobs_have_their_classes),
		CO_TEST(a_create_job_is_no_block_job),
		CO_TEST(manual_steps_wait_for_the_client),
		CO_TEST(a_pending_job_can_be_cancelled),
		CO_TEST(pause_and_resume),
		CO_TEST(a_paused_job_can_be_cancelled),
		CO_TEST(a_job_cancelled_before_its_first_step_never_runs),
		CO_TEST(a_ready_job_completes_when_told),
		CO_TEST(a_soft_cancel_of_a_ready_job_ends_well),
		CO_TEST(an_error_stops_the_job_until_resumed),
		CO_TEST(a_group_completes_together),
		CO_TEST(one_failure_takes_the_group_along),
		CO_TEST(quit_cancels_and_dismisses_all),
		CO_TEST(quit_does_not_wait_for_ever),
		CO_TEST(the_history_is_bounded),
		cmocka_unit_test(the_limit_spreads_bytes_over_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
