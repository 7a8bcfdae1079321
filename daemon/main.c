/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/main.c - quoind: start, run, stop.
 *
 * Start: the options in their order, in a coroutine.  Only when all of them
 * worked is the pidfile written, are clients greeted, is the service manager
 * told.  A failed start takes back what it had built and exits with 1.
 *
 * Stop: by `quit` or a signal.  Jobs are cancelled, exports closed, caches
 * written back; clients are told of it and then let go.  What could not be
 * stored makes the exit status 1.
 */
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "aio/co.h"
#include "aio/loop.h"
#include "base/error.h"
#include "base/log.h"
#include "daemon/background.h"
#include "daemon/cmd_bitmap.h"
#include "daemon/cmd_block.h"
#include "daemon/cmd_export.h"
#include "daemon/cmd_job.h"
#include "daemon/monitor.h"
#include "daemon/object.h"
#include "daemon/options.h"
#include "daemon/pidfile.h"
#include "daemon/systemd.h"
#include "export/nbd/server.h"
#include "qmp/server.h"
#include "schema/commands.h"
#include "schema/types.h"

enum { IO_LOOPS_MAX = 8 };

struct start {
	const struct options *opts;
	struct co *co;		/* while it runs: a signal cancels it */
	bool ok;
};

static struct start starting;

static void
notice(const char *text)
{
	log_line(LOG_LEVEL_WARNING, "%s", text);
}

static const struct qmp_server_config server = {
	.commands = schema_commands,
	.package = "Quoin " PACKAGE_VERSION,
	.notice = notice,
};

static void
on_signal(int signo, void *arg)
{
	(void)signo;
	(void)arg;
	if (starting.co)
		co_cancel(starting.co);
	loop_quit();
}

/* Sockets named "nbd" are the NBD server's, unless an option says what they are for:
 * then it knows more, as of TLS. */
static int
start_passed_nbd(const struct options *opts, struct error **errp)
{
	const struct NbdServerOptions o = { .addr = &(struct SocketAddress){
		.type = SOCKET_ADDRESS_TYPE_FD, .u.fd.str = (char *)"nbd" } };

	if (!systemd_has_socket("nbd") || options_start_nbd(opts))
		return 0;
	return nbd_server_start(NULL, &o, false, errp);
}

static int
start_steps(const struct options *opts, struct error **errp)
{
	/* The options' exports need the server; its clients need the exports. */
	nbd_server_hold(true);
	if (start_passed_nbd(opts, errp) < 0 || options_apply(opts, errp) < 0 ||
	    monitor_add_systemd(errp) < 0)
		return -1;
	if (systemd_untaken())
		return error_set(errp,
				 "systemd passed a socket named '%s', which no option uses;"
				 " the names are: qmp, qmp-ro, nbd, and what"
				 " addr.type=fd,addr.str=NAME of an NBD server names",
				 systemd_untaken());
	if (opts->pidfile && pidfile_write(opts->pidfile, errp) < 0)
		return -1;
	if (monitor_open_all(errp) < 0)
		return -1;
	nbd_server_hold(false);
	return opts->daemonize ? background_ready(errp) : 0;
}

static void
start(void *arg)
{
	struct start *s = arg;
	struct error *err = NULL;

	s->co = co_self();
	s->ok = start_steps(s->opts, &err) == 0;
	s->co = NULL;
	if (s->ok)
		return;
	log_line(LOG_LEVEL_ERROR, "%s%s", error_text(err), error_hint(err));
	error_free(err);
}

/* Everything in the order in which one thing uses the other. */
static void
stop(void *arg)
{
	(void)arg;
	systemd_stopping();
	systemd_status("Ending jobs");
	cmd_job_done();
	systemd_status("Closing exports");
	cmd_export_done();
	systemd_status("Flushing and closing images");
	cmd_block_done();
	qmp_server_stop();
	monitor_close_all();
	pidfile_remove();
}

static unsigned
default_io_loops(void)
{
	cpu_set_t set;
	int n;

	if (sched_getaffinity(0, sizeof(set), &set))
		return 1;
	n = CPU_COUNT(&set);
	return n < 1 ? 1 : n > IO_LOOPS_MAX ? IO_LOOPS_MAX : (unsigned)n;
}

static int
start_loops(const struct options *opts, struct error **errp)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
	unsigned n = opts->io_loops ? opts->io_loops : default_io_loops();

	signal(SIGPIPE, SIG_IGN);
	if (loops_start(n, opts->no_uring ? LOOPS_NO_URING : 0, errp) < 0)
		return -1;
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		loop_signal(signals[i], on_signal, NULL);
	if (!loop_has_uring())
		log_line(LOG_LEVEL_INFO, "disk I/O runs on worker threads: %s",
			 loop_uring_reason());
	return 0;
}

static int
run(const struct options *opts)
{
	starting.opts = opts;
	if (loop_run_co(start, &starting) < 0)
		return EXIT_FAILURE;
	if (starting.ok) {
		systemd_status("Serving");
		systemd_ready();
		loop_run();
	}
	if (loop_run_co(stop, NULL) < 0)
		return EXIT_FAILURE;
	return starting.ok && !cmd_block_close_failures() ? EXIT_SUCCESS : EXIT_FAILURE;
}

int
main(int argc, char **argv)
{
	struct error *err = NULL;
	struct options opts;
	int status;

	log_start("quoind");
	status = options_parse(&opts, argc, argv);
	if (status >= 0) {
		options_done(&opts);
		return status;
	}
	systemd_start();
	if ((opts.daemonize && background_start(&err) < 0) || start_loops(&opts, &err) < 0) {
		log_line(LOG_LEVEL_ERROR, "%s%s", error_text(err), error_hint(err));
		error_free(err);
		options_done(&opts);
		return EXIT_FAILURE;
	}
	object_init();
	cmd_bitmap_init();
	cmd_job_init();
	cmd_export_init();
	qmp_server_start(&server);
	status = run(&opts);
	systemd_stop();
	object_del_all();
	loops_stop();
	options_done(&opts);
	return status;
}
