/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz_format.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "aio/loop.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/check.h"
#include "block/driver.h"
#include "block/open.h"
#include "tests/support/memdisk.h"

enum { PART = 65536, FILE_MAX = 8 << 20 };

struct input {
	enum BlockdevDriver driver;
	const uint8_t *data;
	size_t len;
};

static struct node *
open_disk(struct memdisk *m)
{
	struct node *file;

	if (memdisk_open(m, "file", false, &file, NULL))
		abort();
	return file;
}

/* NULL: refused, with a text. */
static struct node *
open_image(const struct input *in, bool read_only, bool check)
{
	const struct open_policy policy = { .check = check };
	struct BlockdevRef file = { .type = BLOCKDEV_REF_REFERENCE, .u.reference = (char *)"file" };
	struct BlockdevRefOrNull none = { .type = BLOCKDEV_REF_OR_NULL_NULL };
	struct BlockdevOptions o = {
		.node_name = (char *)"image", .driver = in->driver,
		.has_read_only = true, .read_only = read_only,
		.has_discard = true, .discard = BLOCKDEV_DISCARD_OPTIONS_UNMAP,
	};
	CLEANUP(error_freep) struct error *err = NULL;
	struct node *n = NULL;

	if (in->driver == BLOCKDEV_DRIVER_QCOW) {
		o.u.qcow.file = &file;
		o.u.qcow.backing = &none;
	} else {
		o.u.qcow2.file = &file;
		o.u.qcow2.backing = &none;
	}
	if (node_open(&o, &policy, &n, &err) && !*error_text(err))
		abort();
	return n;
}

/* Both ends of the disk, and its middle. */
static void
touch(struct node *n, uint8_t *buf)
{
	uint64_t size = node_size(n), part = min_u64(size, PART);
	const uint64_t places[] = { 0, size / 2 - min_u64(size / 2, part / 2), size - part };

	for (int i = 0; i < 3; i++) {
		struct extent x;

		(void)node_pread(n, places[i], buf, part);
		if (part)
			(void)node_status(n, places[i], part, true, &x);
		if (n->read_only || !part)
			continue;
		(void)node_pwrite(n, places[i] + part / 3, buf, part / 3);
		(void)node_zero(n, places[i], part, i & 1 ? IO_MAY_UNMAP : 0);
		(void)node_discard(n, places[i], part);
		(void)node_pwrite(n, places[i], buf, part / 2);
	}
	(void)node_flush(n);
}

static void
use(const struct input *in, bool read_only)
{
	struct node *n = open_image(in, read_only, false);
	uint8_t *buf = calloc(1, PART);

	if (!buf)
		abort();
	if (n) {
		touch(n, buf);
		node_unref(n);
	}
	free(buf);
}

static void
check(const struct input *in)
{
	struct check_result before, repaired, after;
	struct node *n = open_image(in, false, true);
	int r;

	if (!n)
		return;
	if (node_check(n, 0, NULL, &before) != -ENOTSUP) {
		r = node_check(n, CHECK_FIX_LEAKS | CHECK_FIX_ERRORS, NULL, &repaired);
		if (!r && !repaired.errors && !repaired.corruptions && !repaired.leaks &&
		    (node_check(n, 0, NULL, &after) || after.errors || after.corruptions ||
		     after.leaks))
			abort();
	}
	node_unref(n);
}

static void
use_all(void *arg)
{
	const struct input *in = arg;

	for (int way = 0; way < 3; way++) {
		struct memdisk *m = memdisk_new(in->len);
		struct node *file;

		if (!m)
			abort();
		m->no_log = true;
		m->max_size = FILE_MAX;
		memcpy(m->content, in->data, in->len);
		file = open_disk(m);
		if (way == 2)
			check(in);
		/* What was repaired can be used, too. */
		use(in, way == 1);
		node_unref(file);
		memdisk_free(m);
	}
}

int
fuzz_format_start(void)
{
	return loops_start(1, LOOPS_NO_URING, NULL);
}

void
fuzz_format(enum BlockdevDriver driver, const uint8_t *data, size_t len)
{
	struct input in = { driver, data, len };

	if (len && len <= FILE_MAX)
		(void)loop_run_co(use_all, &in);
}
