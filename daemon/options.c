/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "block/open.h"
#include "daemon/cmd_block.h"
#include "daemon/monitor.h"
#include "daemon/object.h"
#include "export/nbd/server.h"
#include "qmp/keyval.h"
#include "schema/commands.h"
#include "schema/types.h"

/* An option that is a step: its value is decoded as this type, from JSON or from
 * key=value pairs, and handed to apply. */
struct option_kind {
	const char *name;
	const char *implied_key;	/* of a first value without a key; NULL: none */
	const struct meta *type;
	int (*apply)(const void *value, struct error **errp);
};

struct option_step {
	const struct option_kind *kind;
	const char *arg;
};

static int
apply_blockdev(const void *value, struct error **errp)
{
	return qmp_blockdev_add(value, errp);
}

static int
apply_export(const void *value, struct error **errp)
{
	return qmp_block_export_add(value, errp);
}

static int
apply_nbd_server(const void *value, struct error **errp)
{
	return nbd_server_start(NULL, value, false, errp);
}

static int
apply_more_nbd_server(const void *value, struct error **errp)
{
	return qmp_x_quoin_nbd_server_add(value, errp);
}

static int
apply_object(const void *value, struct error **errp)
{
	return object_add(value, errp);
}

static int
apply_chardev(const void *value, struct error **errp)
{
	return monitor_add_chardev(value, errp);
}

static int
apply_monitor(const void *value, struct error **errp)
{
	return monitor_add(value, errp);
}

static int
apply_qmp(const void *value, struct error **errp)
{
	return monitor_add_qmp(value, errp);
}

static const struct option_kind kinds[] = {
	{ "blockdev", "driver", &BlockdevOptions_meta, apply_blockdev },
	{ "chardev", "backend", &ChardevOptions_meta, apply_chardev },
	{ "export", "type", &BlockExportOptions_meta, apply_export },
	{ "monitor", "chardev", &MonitorOptions_meta, apply_monitor },
	{ "nbd-server", NULL, &NbdServerOptions_meta, apply_nbd_server },
	{ "object", "qom-type", &ObjectOptions_meta, apply_object },
	{ "qmp", "path", &QmpSocketOptions_meta, apply_qmp },
	{ "x-quoin-nbd-server", "id", &NbdServerAdd_meta, apply_more_nbd_server },
};

static void
print_help(void)
{
	fputs("Usage: quoind [OPTION]...\n"
	      "Hold a graph of block nodes, and serve it over QMP and NBD.\n"
	      "\n"
	      "Options are carried out in their order; the first that fails ends the start.\n"
	      "Each takes KEY=VALUE,... or JSON.\n"
	      "\n"
	      "  --blockdev [driver=]DRIVER[,node-name=N][,read-only=on|off][,KEY=VALUE...]\n"
	      "                         add a block node, as blockdev-add does\n"
	      "  --chardev socket|stdio|null,id=ID[,path=PATH][,server=on][,wait=off]\n"
	      "                         a stream for a monitor\n"
	      "  --monitor [chardev=]ID[,pretty=on]\n"
	      "                         speak QMP through a character device\n"
	      "  --qmp [path=]PATH[,mode=OCTAL][,read-only=on]\n"
	      "                         listen for QMP clients on a Unix socket: the short way\n"
	      "  --nbd-server addr.type=unix,addr.path=PATH[,max-connections=N]\n"
	      "  --nbd-server addr.type=inet,addr.host=HOST,addr.port=PORT[,max-connections=N]\n"
	      "                         start the NBD server\n"
	      "  --x-quoin-nbd-server [id=]ID,addr.type=TYPE,...[,tls-creds=ID][,tls=optional]\n"
	      "                         start one more, for exports that name it\n"
	      "  --export [type=]nbd,id=ID,node-name=N[,name=NAME][,writable=on]\n"
	      "                         export a block node, as block-export-add does\n"
	      "  --object iothread,id=ID\n"
	      "                         create an object, as object-add does\n"
	      "\n"
	      "  --daemonize            go to the background once everything works\n"
	      "  --pidfile PATH         write the process ID there once everything works\n"
	      "  --image-dir DIR        let images name files in this folder only; may be\n"
	      "                         repeated\n"
	      "  --no-follow            open no file that only an image names\n"
	      "  --io-loops N           threads for I/O (default: one a core, at most 8)\n"
	      "  --no-io-uring          do disk I/O on worker threads\n"
	      "  -h, --help             display this help and exit\n"
	      "  -V, --version          output version information and exit\n",
	      stdout);
}

enum { OPT_DAEMONIZE = 256, OPT_PIDFILE, OPT_IO_LOOPS, OPT_NO_URING,
       OPT_IMAGE_DIR, OPT_NO_FOLLOW, OPT_STEP };

static const struct option long_options[] = {
	{ "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },
	{ "daemonize", no_argument, NULL, OPT_DAEMONIZE },
	{ "pidfile", required_argument, NULL, OPT_PIDFILE },
	{ "io-loops", required_argument, NULL, OPT_IO_LOOPS },
	{ "no-io-uring", no_argument, NULL, OPT_NO_URING },
	{ "image-dir", required_argument, NULL, OPT_IMAGE_DIR },
	{ "no-follow", no_argument, NULL, OPT_NO_FOLLOW },
	{ "blockdev", required_argument, NULL, OPT_STEP + 0 },
	{ "chardev", required_argument, NULL, OPT_STEP + 1 },
	{ "export", required_argument, NULL, OPT_STEP + 2 },
	{ "monitor", required_argument, NULL, OPT_STEP + 3 },
	{ "nbd-server", required_argument, NULL, OPT_STEP + 4 },
	{ "object", required_argument, NULL, OPT_STEP + 5 },
	{ "qmp", required_argument, NULL, OPT_STEP + 6 },
	{ "x-quoin-nbd-server", required_argument, NULL, OPT_STEP + 7 },
	{ NULL, 0, NULL, 0 },
};

static int
parse_io_loops(struct options *opts, const char *arg)
{
	char *end;
	unsigned long n = strtoul(arg, &end, 10);

	if (*arg < '0' || *arg > '9' || *end || n < 1 || n > 32) {
		log_line(LOG_LEVEL_ERROR, "--io-loops %s: a number from 1 to 32 is expected", arg);
		return EXIT_FAILURE;
	}
	opts->io_loops = (unsigned)n;
	return -1;
}

/* The folder is looked for when an image names a file, then maybe from another
 * working directory, which --daemonize leaves. */
static int
parse_image_dir(struct options *opts, const char *arg)
{
	CLEANUP(cleanup_free) char *here = *arg == '/' ? NULL : getcwd(NULL, 0);
	struct stat st;
	char *path;

	if ((*arg != '/' && !here) ||
	    asprintf(&path, "%s%s%s", here ? here : "", here ? "/" : "", arg) < 0) {
		log_line(LOG_LEVEL_ERROR, "--image-dir %s: %s", arg, strerror(errno));
		return EXIT_FAILURE;
	}
	opts->image_dirs[opts->n_image_dirs++] = path;
	if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
		log_line(LOG_LEVEL_WARNING, "--image-dir %s: there is no such folder; until there "
			 "is, images can name no file in it", arg);
	return -1;
}

static int
parse_one(struct options *opts, int c)
{
	switch (c) {
	case 'h':
		print_help();
		return EXIT_SUCCESS;
	case 'V':
		puts("quoind version " PACKAGE_VERSION);
		return EXIT_SUCCESS;
	case OPT_DAEMONIZE:
		opts->daemonize = true;
		return -1;
	case OPT_PIDFILE:
		opts->pidfile = optarg;
		return -1;
	case OPT_IO_LOOPS:
		return parse_io_loops(opts, optarg);
	case OPT_NO_URING:
		opts->no_uring = true;
		return -1;
	case OPT_IMAGE_DIR:
		return parse_image_dir(opts, optarg);
	case OPT_NO_FOLLOW:
		opts->no_follow = true;
		return -1;
	case '?':
		return EXIT_FAILURE;	/* getopt has said why */
	}
	opts->steps[opts->n_steps++] =
		(struct option_step){ .kind = &kinds[c - OPT_STEP], .arg = optarg };
	return -1;
}

int
options_parse(struct options *opts, int argc, char **argv)
{
	int c, status;

	*opts = (struct options){ 0 };
	opts->steps = calloc((size_t)argc, sizeof(*opts->steps));
	opts->image_dirs = calloc((size_t)argc + 1, sizeof(*opts->image_dirs));
	if (!opts->steps || !opts->image_dirs) {
		log_line(LOG_LEVEL_ERROR, "Cannot allocate memory");
		return EXIT_FAILURE;
	}
	while ((c = getopt_long(argc, argv, "-hV", long_options, NULL)) != -1) {
		if (c == 1) {
			log_line(LOG_LEVEL_ERROR, "%s: Unexpected argument", optarg);
			return EXIT_FAILURE;
		}
		status = parse_one(opts, c);
		if (status >= 0)
			return status;
	}
	if (optind < argc) {
		log_line(LOG_LEVEL_ERROR, "%s: Unexpected argument", argv[optind]);
		return EXIT_FAILURE;
	}
	return -1;
}

static int
apply_step(const struct option_step *s, struct error **errp)
{
	void *value = NULL;
	int r;

	if (keyval_decode(s->kind->type, s->arg, s->kind->implied_key, &value, errp) < 0)
		return -1;
	r = s->kind->apply(value, errp);
	meta_free(s->kind->type, value);
	return r;
}

static void
set_policy(const struct options *opts)
{
	static struct open_policy policy;

	policy = open_policy_default;
	policy.follow_images = !opts->no_follow;
	policy.image_dirs = opts->n_image_dirs ? (const char *const *)opts->image_dirs : NULL;
	cmd_block_set_policy(&policy);
}

int
options_apply(const struct options *opts, struct error **errp)
{
	set_policy(opts);
	for (int i = 0; i < opts->n_steps; i++) {
		const struct option_step *s = &opts->steps[i];

		if (apply_step(s, errp) < 0) {
			error_prepend(errp, "--%s %s: ", s->kind->name, s->arg);
			return -1;
		}
	}
	return 0;
}

bool
options_start_nbd(const struct options *opts)
{
	for (int i = 0; i < opts->n_steps; i++)
		if (opts->steps[i].kind->apply == apply_nbd_server)
			return true;
	return false;
}

void
options_done(struct options *opts)
{
	free(opts->steps);
	for (int i = 0; i < opts->n_image_dirs; i++)
		free(opts->image_dirs[i]);
	free(opts->image_dirs);
	*opts = (struct options){ 0 };
}
