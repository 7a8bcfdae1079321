/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/qemu.h"

#include <assert.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/sim/disk.h"

static double
seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void
qemu_start(struct qemu *q, const char *img, double share)
{
	*q = (struct qemu){ .img = img, .share = share, .began = seconds() };
}

bool
qemu_is_due(const struct qemu *q)
{
	return q->img && q->spent < q->share * (seconds() - q->began);
}

/* ---- files ---- */

static const char *
path_of(unsigned disk)
{
	static char path[64];

	snprintf(path, sizeof(path), "/tmp/quoin-sim-%d.%u", (int)getpid(), disk);
	return path;
}

enum { DATA = LAYERS, VIEW };	/* numbers of files behind those of layers */

static void
save(const struct disk *d, unsigned number)
{
	const struct image *m = d->now;
	FILE *f = fopen(path_of(number), "w");

	assert(f && fwrite(m->data, 1, m->size, f) == m->size);
	fclose(f);
}

/* Append the options of layer l and of all below; returns where the text ends. */
static size_t
describe(const struct setup *p, const struct stack *k, enum layer l, const char *prefix,
	 char *text, size_t room)
{
	enum layer below = setup_below(p, k, l);
	char deeper[32];
	size_t at;

	save(k->layer[l], l);
	at = (size_t)snprintf(text, room, "%sdriver=%s,%sfile.driver=file,%sfile.filename=%s",
			      prefix, setup_is_image(p, l) ? "qcow2" : "raw", prefix, prefix,
			      path_of(l));
	if (k->data && l == TOP) {
		save(k->data, DATA);
		at += (size_t)snprintf(text + at, room - at, ",%sdata-file.driver=file,"
				       "%sdata-file.filename=%s", prefix, prefix, path_of(DATA));
	}
	if (below == LAYERS)
		return at;
	snprintf(deeper, sizeof(deeper), "%sbacking.", prefix);
	text[at++] = ',';
	return at + describe(p, k, below, deeper, text + at, room - at);
}

/* ---- asking ---- */

/* Its exit status. */
static int
run(struct qemu *q, char *const argv[])
{
	double began = seconds();
	posix_spawn_file_actions_t actions;
	int status;
	pid_t pid;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
	if (posix_spawn(&pid, q->img, &actions, NULL, argv, environ) != 0 ||
	    waitpid(pid, &status, 0) != pid)
		abort();
	posix_spawn_file_actions_destroy(&actions);
	q->spent += seconds() - began;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* What is right needs no files. */
static const char *
judge(struct qemu *q, bool ok, const char *what)
{
	if (!ok) {
		snprintf(q->text, sizeof(q->text), "%s: %s", what, path_of(TOP));
		return q->text;
	}
	for (unsigned i = 0; i <= VIEW; i++)
		unlink(path_of(i));
	return NULL;
}

const char *
qemu_check(struct qemu *q, const struct setup *p, const struct stack *k, enum layer l)
{
	char options[900];
	char *argv[] = { (char *)q->img, (char *)"check", (char *)"-q", (char *)"--image-opts",
			 options, NULL };
	int status;

	describe(p, k, l, "", options, sizeof(options));
	status = run(q, argv);
	q->checked++;
	return judge(q, status == 0 || status == 3, "qemu-img check does not like it");
}

static bool
holds(const char *path, const uint8_t *view, uint64_t size)
{
	uint8_t *buf = sim_alloc(size + 1);
	FILE *f = fopen(path, "r");
	bool same = f && fread(buf, 1, size + 1, f) == size && !memcmp(buf, view, size);

	if (f)
		fclose(f);
	free(buf);
	return same;
}

const char *
qemu_compare(struct qemu *q, const struct setup *p, const struct stack *k, enum layer l,
	     const uint8_t *view, uint64_t size)
{
	char options[900];
	char *view_path = strdup(path_of(VIEW));
	char *argv[] = { (char *)q->img, (char *)"convert", (char *)"-O", (char *)"raw",
			 (char *)"--image-opts", options, view_path, NULL };
	bool same;

	assert(view_path);
	describe(p, k, l, "", options, sizeof(options));
	same = run(q, argv) == 0 && holds(view_path, view, size);
	free(view_path);
	q->compared++;
	return judge(q, same, "qemu-img sees something else");
}
