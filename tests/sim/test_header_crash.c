/* SPDX-License-Identifier: Apache-2.0 */
/* Power cuts while the header is written anew with another backing file's name.  After
 * each write of the record, with all, none and random parts of what no flush had
 * covered, the image opens and has the old name or the new one, whole, with its
 * format. */
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/qcow2/format.h"
#include "block/qcow2/qcow2.h"
#include "tests/sim/powercut.h"
#include "tests/support/memdisk.h"
#include "tests/unit/aio_test.h"
#include "tests/unit/qcow2_mem.h"

enum { SAMPLES = 6, NAME_MAX_LEN = 1023 };

/* One after the other; 0: no backing file any more. */
static const size_t lengths[] = { 600, 5, 380, 1000, 600, 1023, 0, 450, 30, 0, 1000 };

struct names {
	char old[NAME_MAX_LEN + 1], new[NAME_MAX_LEN + 1];
	const char *old_fmt, *new_fmt;
};

static struct node *
open_file(struct memdisk *m)
{
	struct error *err = NULL;
	struct node *n = NULL;

	assert_int_equal(memdisk_open(m, NULL, false, &n, &err), 0);
	return n;
}

static bool
has(const struct qcow2 *q, const char *name, const char *fmt)
{
	const char *is = q->backing_name ? q->backing_name : "";
	const char *is_fmt = q->backing_format ? q->backing_format : "";

	return !strcmp(is, name) && (!*name || !strcmp(is_fmt, fmt));
}

static void
judge(struct memdisk *disk, const struct names *names, size_t count, unsigned how)
{
	struct cut cut = { .how = how, .rng = { count * 7 + how } };
	uint64_t size;
	uint8_t *image = memdisk_image(disk, count, cut_keeps, &cut, &size);
	struct memdisk *m = memdisk_new(size);
	struct node *file, *n;
	char *text = NULL;

	m->no_log = true;
	memcpy(m->content, image, size);
	free(image);
	file = open_file(m);
	n = q2_open(file, NULL, true, &text);
	if (!n)
		fail_msg("does not open: %s", text);
	if (!has(n->state, names->old, names->old_fmt) && !has(n->state, names->new, names->new_fmt))
		fail_msg("the backing file is another one");
	assert_int_equal(q2_close(n), 0);
	node_unref(file);
	memdisk_free(m);
}

static void
change_names(void *arg)
{
	struct memdisk *disk = memdisk_new(0);
	struct node *file = open_file(disk), *n = q2_make(file, arg, NULL);
	struct names names = { .old = "", .old_fmt = "" };

	for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
		memset(names.new, 'a' + (int)i, lengths[i]);
		names.new[lengths[i]] = '\0';
		names.new_fmt = i & 1 ? "raw" : "qcow2";
		memdisk_checkpoint(disk);
		assert_int_equal(qcow2_change_backing(n, lengths[i] ? names.new : NULL,
						      names.new_fmt, NULL), 0);
		for (size_t k = 0; k <= disk->log_count; k++)
			for (unsigned how = 0; how < 2 + SAMPLES; how++)
				judge(disk, &names, k, how);
		names.old_fmt = names.new_fmt;
		memcpy(names.old, names.new, sizeof(names.old));
	}
	assert_int_equal(q2_close(n), 0);
	node_unref(file);
	memdisk_free(disk);
}

/* Also where the extensions that give way go beyond the first sector. */
static void
no_power_cut_mixes_backing_files(void **state)
{
	struct qcow2_format f = { .size = 1 << 20, .version = 3, .refcount_order = 4 };

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		f.cluster_bits = i & 1 ? 16 : 13;
		f.backing_format = i & 2 ? "raw" : NULL;
		run(change_names, &f);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(no_power_cut_mixes_backing_files),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
