/* SPDX-License-Identifier: Apache-2.0 */
/* Commit over real chains: raw, two qcow2 layers and the one that the guest has. */
#include "tests/unit/job_test.h"

#include <stdatomic.h>

#include "block/filters/commit_top.h"
#include "job/commit.h"
#include "tests/support/failheap.h"

enum { SIZE = 4 << 20, LAYERS = 4, BASE_SIZE = 3 << 20 };

static const char *const file_names[LAYERS] = { "f0", "f1", "f2", "f3" };
static const char *const names[LAYERS] = { "base", "low", "mid", "active" };

struct chain {
	struct memdisk *disk[LAYERS];
	struct node *file[LAYERS], *node[LAYERS];	/* references */
	struct root *guest;
	uint8_t *model;		/* what the guest has to see */
};

static struct BlockdevRef
ref(const char *name)
{
	return (struct BlockdevRef){ .type = BLOCKDEV_REF_REFERENCE,
				     .u.reference = (char *)name };
}

static void
make_qcow2(struct BlockdevRef *file, uint64_t size, const char *backing,
	   enum BlockdevDriver fmt)
{
	struct BlockdevCreateOptions o = {
		.driver = BLOCKDEV_DRIVER_QCOW2,
		.u.qcow2 = { .file = file, .size = size, .backing_file = (char *)backing,
			     .has_backing_fmt = true, .backing_fmt = fmt },
	};

	assert_int_equal(driver_find("qcow2")->create(&o, NULL), 0);
}

static void
open_layer(struct chain *c, unsigned i, bool read_only)
{
	struct BlockdevRef file = ref(file_names[i]);
	struct BlockdevRefOrNull under = { .type = BLOCKDEV_REF_OR_NULL_REFERENCE };
	struct BlockdevOptions o = { .node_name = (char *)names[i], .has_read_only = true,
				     .read_only = read_only };

	o.driver = i ? BLOCKDEV_DRIVER_QCOW2 : BLOCKDEV_DRIVER_RAW;
	if (i) {
		under.u.reference = (char *)names[i - 1];
		o.u.qcow2.file = &file;
		o.u.qcow2.backing = &under;
	} else {
		o.u.raw.file = &file;
	}
	MUST(node_open(&o, NULL, &c->node[i], &err));
}

static void
fill(struct chain *c, unsigned i, uint64_t size)
{
	struct rng r = { i * 31 + 5 };
	struct root *root = must_root(c->node[i], PERM_WRITE, PERM_ALL);

	for (int k = 0; k < 40; k++) {
		uint64_t len = 1 + rng_below(&r, 100000);
		uint64_t off = rng_below(&r, (unsigned)(size - len));
		uint8_t *buf = malloc(len);
		struct iov v = IOV_BUF(buf, len);

		memset(buf, 1 + (int)rng_below(&r, 255), len);
		if (rng_below(&r, 5)) {
			assert_int_equal(io_write(root, off, &v, 0), 0);
			memcpy(c->model + off, buf, len);
		} else {
			assert_int_equal(io_zero(root, off, len, 0), 0);
			memset(c->model + off, 0, len);
		}
		free(buf);
	}
	assert_int_equal(io_flush(root), 0);
	root_free(root);
}

static void
close_layer(struct chain *c, unsigned i)
{
	if (c->node[i])
		node_unref(c->node[i]);
	c->node[i] = NULL;
}

static void
open_guest(struct chain *c)
{
	for (unsigned i = 0; i < LAYERS; i++)
		open_layer(c, i, i < LAYERS - 1);
	c->guest = must_root(c->node[LAYERS - 1], PERM_CONSISTENT_READ | PERM_WRITE,
			     PERM_ALL & ~(perm_set)(PERM_WRITE | PERM_RESIZE));
}

static void
close_guest(struct chain *c)
{
	root_free(c->guest);
	for (unsigned i = LAYERS; i-- > 0;)
		close_layer(c, i);
}

/* Each layer is written while it is the uppermost, then the chain is opened as
 * clients do: all but the active layer read-only. */
static void
set_up(struct chain *c)
{
	watch_jobs();
	c->model = calloc(1, SIZE);
	for (unsigned i = 0; i < LAYERS; i++) {
		c->disk[i] = memdisk_new(i ? 0 : BASE_SIZE);
		c->disk[i]->no_log = true;
		c->disk[i]->yields = 1;
		c->file[i] = must_mem(c->disk[i], file_names[i]);
		if (i) {
			struct BlockdevRef file = ref(file_names[i]);

			make_qcow2(&file, SIZE, names[i - 1],
				   i == 1 ? BLOCKDEV_DRIVER_RAW : BLOCKDEV_DRIVER_QCOW2);
		}
		for (unsigned k = 0; k <= i; k++)
			open_layer(c, k, k < i);
		fill(c, i, i ? SIZE : BASE_SIZE);
		for (unsigned k = i + 1; k-- > 0;)
			close_layer(c, k);
	}
	open_guest(c);
}

static void
check_guest(struct chain *c)
{
	uint8_t *buf = malloc(SIZE);
	struct iov v = IOV_BUF(buf, SIZE);

	assert_true(io_size(c->guest) >= SIZE);
	assert_int_equal(io_read(c->guest, 0, &v), 0);
	for (uint64_t i = 0; i < SIZE; i++)
		if (buf[i] != c->model[i])
			fail_msg("byte %#llx is %#x and should be %#x",
				 (unsigned long long)i, buf[i], c->model[i]);
	free(buf);
}

static void
tear_down(struct chain *c)
{
	assert_null(job_next(NULL));
	close_guest(c);
	for (unsigned i = 0; i < LAYERS; i++) {
		node_unref(c->file[i]);
		memdisk_free(c->disk[i]);
	}
	free(c->model);
}

#define CHAIN_CASE(name) FIXTURE_CASE(name, struct chain, c, set_up(c), tear_down(c))

static struct block_commit_args
commit(const char *top, const char *base)
{
	return (struct block_commit_args){ .job_id = (char *)"c",
					   .device = (char *)"active",
					   .top_node = (char *)top,
					   .base_node = (char *)base };
}

static char *
backing_name(struct node *n)
{
	struct ImageInfo *i = calloc(1, sizeof(*i));
	char *name = NULL;

	MUST(n->driver->info(n, i, &err));
	if (i->backing_filename)
		name = strdup(i->backing_filename);
	ImageInfo_free(i);
	return name;
}

static void
expect_backing(struct node *n, const char *name)
{
	char *is = backing_name(n);

	assert_non_null(is);
	assert_string_equal(is, name);
	free(is);
}

/* ---- layers that nobody writes to ---- */

CHAIN_CASE(the_middle_goes_into_the_base)
{
	struct block_commit_args a = commit("mid", "base");

	a.backing_file = (char *)"the-base";
	check_guest(c);
	MUST(commit_start(&a, &err));
	wait_for_job("c", JOB_STATUS_NULL);
	assert_string_equal(seen.text, "");
	check_guest(c);
	assert_ptr_equal(node_backing(c->node[3]), c->node[0]);
	expect_backing(c->node[3], "the-base");
	/* The base has grown to the size of what went into it. */
	assert_int_equal(node_size(c->node[0]), SIZE);
	assert_true(node_is_read_only(c->node[0]));
	assert_int_equal(job_history(0)->progress, SIZE);
}

CHAIN_CASE(one_layer_goes_into_the_next)
{
	struct block_commit_args a = commit("mid", "low");

	MUST(commit_start(&a, &err));
	wait_for_job("c", JOB_STATUS_NULL);
	assert_string_equal(seen.text, "");
	check_guest(c);
	assert_ptr_equal(node_backing(c->node[3]), c->node[1]);
	assert_ptr_equal(node_backing(c->node[1]), c->node[0]);
	assert_int_equal(node_size(c->node[0]), BASE_SIZE);
}

/* Behind the end of a short layer its overlay shows zeroes, not what lies deeper. */
static void
make_layer_short(struct chain *c, unsigned layer)
{
	struct iov v = IOV_BUF(c->model, SIZE);

	close_guest(c);
	for (unsigned i = 0; i <= layer; i++)
		open_layer(c, i, i < layer);
	MUST(node_truncate(c->node[layer], (1 << 20) + 3 * 512, true, PREALLOC_OFF, &err));
	for (unsigned i = layer + 1; i-- > 0;)
		close_layer(c, i);
	open_guest(c);
	assert_int_equal(io_read(c->guest, 0, &v), 0);
}

static void
commit_short_layer(struct chain *c, const char *base)
{
	struct block_commit_args a = commit("mid", base);

	make_layer_short(c, 2);
	MUST(commit_start(&a, &err));
	wait_for_job("c", JOB_STATUS_NULL);
	assert_string_equal(seen.text, "");
	check_guest(c);
}

CHAIN_CASE(what_a_short_layer_hides_stays_hidden)
{
	commit_short_layer(c, "low");
	assert_int_equal(job_history(0)->progress, SIZE);
}

CHAIN_CASE(what_a_short_layer_hides_stays_hidden_further_down)
{
	commit_short_layer(c, "base");
	assert_int_equal(job_history(0)->progress, BASE_SIZE);
}

/* Another image on the layer, longer than the one in the chain. */
struct sibling {
	struct memdisk *disk;
	struct node *file, *node;
	struct root *root;
};

static void
add_sibling(struct chain *c, struct sibling *sib, uint64_t size)
{
	struct BlockdevRef file = ref("fs");
	struct BlockdevRefOrNull under = { .type = BLOCKDEV_REF_OR_NULL_REFERENCE,
					   .u.reference = (char *)"mid" };
	struct BlockdevOptions o = { .node_name = (char *)"sibling",
				     .driver = BLOCKDEV_DRIVER_QCOW2 };

	make_layer_short(c, 2);
	close_guest(c);
	for (unsigned i = 0; i < LAYERS; i++)
		open_layer(c, i, i != 3);
	MUST(node_truncate(c->node[3], 2 << 20, true, PREALLOC_OFF, &err));
	sib->disk = memdisk_new(0);
	sib->file = must_mem(sib->disk, "fs");
	make_qcow2(&file, size, "mid", BLOCKDEV_DRIVER_QCOW2);
	o.u.qcow2.file = &file;
	o.u.qcow2.backing = &under;
	MUST(node_open(&o, NULL, &sib->node, &err));
	sib->root = must_root(sib->node, PERM_CONSISTENT_READ, PERM_ALL);
}

static void
drop_sibling(struct chain *c, struct sibling *sib)
{
	root_free(sib->root);
	node_unref(sib->node);
	node_unref(sib->file);
	memdisk_free(sib->disk);
	c->guest = NULL;
}

CHAIN_CASE(what_a_short_layer_hides_stays_hidden_from_all_above)
{
	struct block_commit_args a = commit("mid", "low");
	struct iov v = IOV_BUF(c->model, SIZE);
	struct sibling sib;

	add_sibling(c, &sib, SIZE);
	assert_int_equal(io_read(sib.root, 0, &v), 0);
	MUST(commit_start(&a, &err));
	wait_for_job("c", JOB_STATUS_NULL);
	assert_string_equal(seen.text, "");
	assert_ptr_equal(node_backing(sib.node), c->node[1]);
	c->guest = sib.root;
	check_guest(c);
	drop_sibling(c, &sib);
}

CHAIN_CASE(an_image_above_that_grows_at_the_end_keeps_the_layer)
{
	struct block_commit_args a = commit("mid", "low");
	struct iov v = IOV_BUF(c->model, SIZE);
	struct sibling sib;

	add_sibling(c, &sib, 3 << 20);
	a.has_auto_finalize = true;	/* set to false */
	MUST(commit_start(&a, &err));
	wait_for_job("c", JOB_STATUS_PENDING);
	MUST(node_truncate(sib.node, SIZE, true, PREALLOC_OFF, &err));
	assert_int_equal(io_read(sib.root, 0, &v), 0);
	MUST(job_user_finalize(job_find("c", NULL), &err));
	wait_for_job("c", JOB_STATUS_NULL);
	assert_non_null(strstr(seen.text, "An image above 'mid' has grown"));
	c->guest = sib.root;
	check_guest(c);
	assert_ptr_equal(node_backing(sib.node), c->node[2]);
	drop_sibling(c, &sib);
}

/* Below what is committed past it a layer shows no disk that anybody wrote. */
CHAIN_CASE(nobody_reads_a_layer_that_data_goes_past)
{
	struct block_commit_args a = commit("mid", "base");
	struct root *reader, *other = NULL;

	reader = must_root(c->node[1], PERM_CONSISTENT_READ, PERM_ALL);
	MUST_FAIL(commit_start(&a, &err),
		  "Permission conflict on node 'low': permissions 'consistent read' are "
		  "both required by an unnamed block device (uses node 'low' as 'root' "
		  "child) and unshared by commit job 'c' (uses node 'low' as "
		  "'intermediate node' child).");
	assert_ptr_equal(node_backing(c->node[3]), c->node[2]);
	assert_true(node_is_read_only(c->node[0]));
	root_free(reader);
	a.has_speed = true;
	a.speed = 65536;
	MUST(commit_start(&a, &err));
	assert_int_equal(root_new(c->node[1], "root", PERM_CONSISTENT_READ, PERM_ALL, NULL,
				  NULL, &other, NULL), -1);
	MUST(job_user_cancel(job_find("c", NULL), true, &err));
	wait_for_job("c", JOB_STATUS_NULL);
	reader = must_root(c->node[1], PERM_CONSISTENT_READ, PERM_ALL);
	root_free(reader);
	check_guest(c);
}

CHAIN_CASE(the_chain_is_as_before_when_cancelled)
{
	struct block_commit_args a = commit("mid", "base");

	a.has_speed = true;
	a.speed = 65536;
	MUST(commit_start(&a, &err));
	assert_ptr_not_equal(node_backing(c->node[3]), c->node[2]);
	MUST(job_user_cancel(job_find("c", NULL), true, &err));
	wait_for_job("c", JOB_STATUS_NULL);
	assert_int_equal(seen.cancelled, 1);
	assert_ptr_equal(node_backing(c->node[3]), c->node[2]);
	expect_backing(c->node[3], "mid");
	assert_true(node_is_read_only(c->node[0]));
	check_guest(c);
}

CHAIN_CASE(every_failure_leaves_the_chain_as_it_was)
{
	struct block_commit_args a = commit("mid", "base");
	unsigned n = 0, failed;

	do {
		memdisk_fail_any(c->disk[0], ++n, -EIO, false);
		failed = commit_start(&a, NULL) < 0;
		wait_for_job("c", JOB_STATUS_NULL);
		failed |= *seen.text != '\0';
		if (failed) {
			assert_ptr_equal(node_backing(c->node[3]), c->node[2]);
			expect_backing(c->node[3], "mid");
			assert_true(node_is_read_only(c->node[0]));
		}
		check_guest(c);
		/* A flush that failed is final until the node is opened again. */
		if (failed && n > 1000)
			fail_msg("no end");
		if (failed && atomic_load(&c->file[0]->flush_error)) {
			atomic_store(&c->file[0]->flush_error, 0);
			atomic_store(&c->node[0]->flush_error, 0);
		}
	} while (failed);
	memdisk_fail_any(c->disk[0], 0, 0, false);
	assert_true(n > 5);
	assert_ptr_equal(node_backing(c->node[3]), c->node[0]);
}

CHAIN_CASE(a_failing_header_leaves_the_chain_as_it_was)
{
	struct block_commit_args a = commit("mid", "base");

	memdisk_fail_any(c->disk[3], 1, -ENOSPC, true);
	MUST(commit_start(&a, &err));
	wait_for_job("c", JOB_STATUS_NULL);
	assert_true(*seen.text);
	memdisk_fail_any(c->disk[3], 0, 0, false);
	assert_ptr_equal(node_backing(c->node[3]), c->node[2]);
	assert_true(node_is_read_only(c->node[0]));
	check_guest(c);
}

CHAIN_CASE(read_errors_are_tried_again_if_told_so)
{
	struct block_commit_args a = commit("mid", "base");

	a.has_on_error = true;
	a.on_error = BLOCKDEV_ON_ERROR_IGNORE;
	memdisk_fail(c->disk[2], 1u << MEMDISK_READ, 6, -EIO, false);
	MUST(commit_start(&a, &err));
	wait_for_job("c", JOB_STATUS_NULL);
	assert_string_equal(seen.text, "");
	assert_in_range(seen.errors, 1, 2);
	check_guest(c);
}

CHAIN_CASE(nobody_else_may_write_to_the_base)
{
	struct block_commit_args a = commit("mid", "base");
	struct root *r = NULL;

	a.has_speed = true;
	a.speed = 65536;
	MUST(commit_start(&a, &err));
	assert_int_equal(root_new(c->node[0], "root", PERM_WRITE, PERM_ALL, NULL, NULL, &r,
				  NULL), -1);
	assert_int_equal(node_check_busy(c->node[1], NULL), -1);
	MUST(job_user_cancel(job_find("c", NULL), true, &err));
	wait_for_job("c", JOB_STATUS_NULL);
	assert_int_equal(node_check_busy(c->node[1], NULL), 0);
}

/* ---- the active layer ---- */

static void
complete(void)
{
	MUST(job_user_complete(job_find("c", NULL), &err));
	wait_for_job("c", JOB_STATUS_NULL);
}

CHAIN_CASE(the_active_layer_goes_down_and_the_guest_with_it)
{
	struct block_commit_args a = commit(NULL, "low");

	MUST(commit_start(&a, &err));
	wait_for_job("c", JOB_STATUS_READY);
	assert_int_equal(seen.ready, 1);
	check_guest(c);
	complete();
	assert_string_equal(seen.text, "");
	assert_ptr_equal(root_node(c->guest), c->node[1]);
	assert_false(node_is_read_only(c->node[1]));
	check_guest(c);
}

/* Readers that came to top when the filter was above it already. */
static void
follow_top(struct chain *c, const char *top)
{
	unsigned i = top ? 2 : 3;
	struct block_commit_args a = commit(top, names[i - 1]);
	struct root *reader;

	if (top)
		a.has_auto_finalize = true;
	MUST(commit_start(&a, &err));
	wait_for_job("c", top ? JOB_STATUS_PENDING : JOB_STATUS_READY);
	reader = must_root(c->node[i], PERM_CONSISTENT_READ, PERM_ALL);
	if (top) {
		MUST(job_user_finalize(job_find("c", NULL), &err));
		wait_for_job("c", JOB_STATUS_NULL);
	} else {
		complete();
	}
	assert_string_equal(seen.text, "");
	assert_ptr_equal(root_node(reader), c->node[i - 1]);
	root_free(reader);
	check_guest(c);
}

CHAIN_CASE(who_came_to_the_active_layer_later_goes_along)
{
	follow_top(c, NULL);
}

CHAIN_CASE(who_came_to_the_middle_later_goes_along)
{
	follow_top(c, "mid");
}

/* A layer that is written to while the next one stands on it. */
CHAIN_CASE(what_a_short_layer_with_a_writer_hides_stays_hidden)
{
	struct block_commit_args a = commit("mid", "low");
	struct root *reader, *writer;
	uint8_t byte = 0x5a;
	struct iov v = IOV_BUF(&byte, 1), all = IOV_BUF(c->model, SIZE);

	make_layer_short(c, 2);
	close_guest(c);
	for (unsigned i = 0; i < LAYERS; i++)
		open_layer(c, i, i != 2);
	reader = must_root(c->node[3], PERM_CONSISTENT_READ, PERM_ALL);
	writer = must_root(c->node[2], PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
	MUST(commit_start(&a, &err));
	wait_for_job("c", JOB_STATUS_READY);
	assert_int_equal(io_write(writer, 4321, &v, 0), 0);
	assert_int_equal(io_read(reader, 0, &all), 0);
	complete();
	assert_string_equal(seen.text, "");
	assert_ptr_equal(root_node(writer), c->node[1]);
	assert_ptr_equal(node_backing(c->node[3]), c->node[1]);
	c->guest = reader;
	check_guest(c);
	root_free(writer);
}

CHAIN_CASE(nobody_may_write_to_the_active_layer_past_the_job)
{
	struct block_commit_args a = commit(NULL, "base");
	struct root *r = NULL;

	root_free(c->guest);
	c->guest = must_root(c->node[3], PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
	MUST(commit_start(&a, &err));
	wait_for_job("c", JOB_STATUS_READY);
	assert_int_equal(root_new(c->node[3], "root", PERM_WRITE, PERM_ALL, NULL, NULL, &r,
				  NULL), -1);
	assert_int_equal(root_new(c->node[0], "root", PERM_WRITE, PERM_ALL, NULL, NULL, &r,
				  NULL), -1);
	complete();
	check_guest(c);
}

CHAIN_CASE(a_ready_commit_that_is_cancelled_softly_keeps_the_active_layer)
{
	struct block_commit_args a = commit(NULL, "base");

	MUST(commit_start(&a, &err));
	wait_for_job("c", JOB_STATUS_READY);
	MUST(job_user_cancel(job_find("c", NULL), false, &err));
	wait_for_job("c", JOB_STATUS_NULL);
	assert_int_equal(seen.completed, 1);
	assert_int_equal(seen.cancelled, 0);
	assert_ptr_equal(root_node(c->guest), c->node[3]);
	assert_true(node_is_read_only(c->node[0]));
	check_guest(c);
}

struct slow_write {
	struct root *root;
	uint64_t off;
	int result;
};

static void
write_slowly(void *arg)
{
	struct slow_write *w = arg;
	uint8_t buf[1000];
	struct iov v = IOV_BUF(buf, sizeof(buf));

	memset(buf, 'g', sizeof(buf));
	w->result = io_write(w->root, w->off, &v, 0);
}

CHAIN_CASE(zeroes_that_a_guest_is_writing_over_do_not_go_down_behind_it)
{
	struct commit_top_options o = { .active = true };
	struct slow_write w = { c->guest, 5000, 1 };
	uint8_t *buf = malloc(COMMIT_TOP_GRANULE);
	enum IoOperationType op;
	struct co_group group;
	struct node *filter;

	assert_int_equal(io_zero(c->guest, 0, COMMIT_TOP_GRANULE, 0), 0);
	MUST(node_set_read_only(c->node[2], false, &err));
	MUST(commit_top_new(&o, c->node[3], c->node[2], &filter, &err));
	commit_top_follow(filter);
	c->disk[3]->yields = 50;
	co_group_init(&group);
	assert_int_equal(co_group_start(&group, write_slowly, &w), 0);
	for (int i = 0; i < 10; i++)
		co_yield();
	assert_int_equal(w.result, 1);	/* it is under way */
	assert_int_equal(commit_top_catch_up(filter, 0, COMMIT_TOP_GRANULE, buf, &op), 0);
	co_group_wait(&group);
	assert_int_equal(w.result, 0);
	assert_int_equal(node_pread(c->node[2], 5000, buf, 1000), 0);
	assert_int_equal(buf[0], 'g');
	assert_int_equal(buf[999], 'g');
	memset(c->model, 0, COMMIT_TOP_GRANULE);
	memset(c->model + 5000, 'g', 1000);
	check_guest(c);
	MUST(commit_top_remove(filter, &err));
	node_unref(filter);
	free(buf);
}

enum { GUESTS = 4, GUEST_WRITES = 150, STRIPE = 3000 };

struct guest {
	struct chain *c;
	unsigned number;
	atomic_bool *stop;
	int err;
};

/* Guests write to stripes of their own, so that the model needs no lock. */
static void
guest_writes(void *arg)
{
	struct guest *g = arg;
	struct rng r = { g->number * 977 + 3 };
	uint8_t buf[STRIPE];

	for (int i = 0; i < GUEST_WRITES || !atomic_load(g->stop); i++) {
		uint64_t stripe = rng_below(&r, SIZE / STRIPE / GUESTS) * GUESTS + g->number;
		uint64_t off = stripe * STRIPE, len = 1 + rng_below(&r, STRIPE);
		struct iov v = IOV_BUF(buf, len);
		bool zero = !rng_below(&r, 6);
		int err;

		memset(buf, 1 + (int)rng_below(&r, 255), len);
		err = zero ? io_zero(g->c->guest, off, len, 0)
			   : io_write(g->c->guest, off, &v, 0);
		if (err)
			g->err = err;
		if (zero)
			memset(g->c->model + off, 0, len);
		else
			memcpy(g->c->model + off, buf, len);
		if (!rng_below(&r, 20) && io_flush(g->c->guest))
			g->err = -EIO;
		co_yield();
	}
}

CHAIN_CASE(guests_on_several_loops_lose_nothing)
{
	struct block_commit_args a = commit(NULL, "base");
	struct guest guests[GUESTS];
	atomic_bool stop = false;
	struct co_group group;

	co_group_init(&group);
	MUST(commit_start(&a, &err));
	for (unsigned i = 0; i < GUESTS; i++) {
		guests[i] = (struct guest){ .c = c, .number = i, .stop = &stop };
		assert_int_equal(co_group_spawn(&group, loop_io(i % loop_io_count()),
						guest_writes, &guests[i]), 0);
	}
	wait_for_job("c", JOB_STATUS_READY);
	complete();
	atomic_store(&stop, true);
	co_group_wait(&group);
	for (unsigned i = 0; i < GUESTS; i++)
		assert_int_equal(guests[i].err, 0);
	assert_string_equal(seen.text, "");
	assert_ptr_equal(root_node(c->guest), c->node[0]);
	check_guest(c);
}

CHAIN_CASE(a_base_that_fails_while_ready_is_caught_up_with)
{
	struct block_commit_args a = commit(NULL, "base");
	uint8_t byte = 0x77;
	struct iov v = IOV_BUF(&byte, 1);

	a.has_on_error = true;
	a.on_error = BLOCKDEV_ON_ERROR_IGNORE;
	MUST(commit_start(&a, &err));
	wait_for_job("c", JOB_STATUS_READY);
	memdisk_fail(c->disk[0], 1u << MEMDISK_WRITE, 1, -EIO, false);
	/* The guest does not see it. */
	assert_int_equal(io_write(c->guest, 1234567, &v, 0), 0);
	c->model[1234567] = byte;
	complete();
	assert_string_equal(seen.text, "");
	assert_ptr_equal(root_node(c->guest), c->node[0]);
	check_guest(c);
}

CHAIN_CASE(an_active_commit_that_fails_keeps_the_active_layer)
{
	struct block_commit_args a = commit(NULL, "base");

	memdisk_fail(c->disk[0], 1u << MEMDISK_WRITE, 4, -ENOSPC, true);
	MUST(commit_start(&a, &err));
	wait_for_job("c", JOB_STATUS_NULL);
	assert_string_equal(seen.text, "No space left on device");
	memdisk_fail(c->disk[0], 1u << MEMDISK_WRITE, 0, 0, false);
	assert_ptr_equal(root_node(c->guest), c->node[3]);
	assert_true(node_is_read_only(c->node[0]));
	check_guest(c);
}

/* ---- refusals ---- */

CHAIN_CASE(bad_arguments_are_refused_with_the_peers_words)
{
	struct block_commit_args a = commit(NULL, NULL);

	a.device = (char *)"mid";
	MUST_FAIL(commit_start(&a, &err), "Need a root block node");
	a.device = (char *)"nope";
	MUST_FAIL(commit_start(&a, &err), "Device 'nope' not found");
	a = commit("nope", NULL);
	MUST_FAIL(commit_start(&a, &err), "Cannot find device='' nor node-name='nope'");
	a = commit("f0", NULL);
	MUST_FAIL(commit_start(&a, &err), "'f0' is not in this backing file chain");
	a = commit("low", "mid");
	MUST_FAIL(commit_start(&a, &err), "'mid' is not in this backing file chain");
	a = commit("low", "low");
	MUST_FAIL(commit_start(&a, &err), "cannot commit an image into itself");
	a = commit("mid", "low");
	a.top = (char *)"x";
	MUST_FAIL(commit_start(&a, &err), "'top-node' and 'top' are mutually exclusive");
	a = commit("mid", "low");
	a.base = (char *)"x";
	MUST_FAIL(commit_start(&a, &err), "'base-node' and 'base' are mutually exclusive");
	a = commit(NULL, "low");
	a.backing_file = (char *)"x";
	MUST_FAIL(commit_start(&a, &err),
		  "'backing-file' specified, but 'top' is the active layer");
	a = commit("mid", "low");
	a.filter_node_name = (char *)"mid";
	MUST_FAIL(commit_start(&a, &err), "Duplicate nodes with node-name='mid'");
	assert_true(node_is_read_only(c->node[1]));
	a = commit("mid", "low");
	a.job_id = NULL;
	MUST_FAIL(commit_start(&a, &err), "Invalid job ID ''");
	assert_ptr_equal(node_backing(c->node[3]), c->node[2]);
}

CHAIN_CASE(a_base_that_cannot_be_written_is_refused_at_the_start)
{
	struct block_commit_args a = commit("mid", "base");
	struct root *r = must_root(c->node[0], PERM_CONSISTENT_READ,
				   PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED);

	assert_int_equal(commit_start(&a, NULL), -1);
	assert_true(node_is_read_only(c->node[0]));
	assert_ptr_equal(node_backing(c->node[3]), c->node[2]);
	root_free(r);
}

static void
start_without_memory(struct chain *c, const char *top)
{
	struct block_commit_args a = commit(top, "base");
	unsigned nth = 0;
	bool failed;

	do {
		int r;

		failheap_arm(++nth);
		r = commit_start(&a, NULL);
		failed = failheap_disarm();
		if (r < 0) {
			assert_null(job_next(NULL));
			assert_int_equal(node_check_busy(c->node[1], NULL), 0);
		} else {
			MUST(job_user_cancel(job_find("c", NULL), true, &err));
			wait_for_job("c", JOB_STATUS_NULL);
		}
		assert_true(node_is_read_only(c->node[0]));
		assert_ptr_equal(root_node(c->guest), c->node[3]);
		assert_ptr_equal(node_backing(c->node[3]), c->node[2]);
	} while (failed);
	assert_true(nth > 10);
	check_guest(c);
}

CHAIN_CASE(a_start_without_memory_leaves_nothing)
{
	start_without_memory(c, "mid");
}

CHAIN_CASE(an_active_start_without_memory_leaves_nothing)
{
	start_without_memory(c, NULL);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(the_middle_goes_into_the_base),
		CO_TEST(one_layer_goes_into_the_next),
		CO_TEST(what_a_short_layer_hides_stays_hidden),
		CO_TEST(what_a_short_layer_hides_stays_hidden_further_down),
		CO_TEST(what_a_short_layer_hides_stays_hidden_from_all_above),
		CO_TEST(an_image_above_that_grows_at_the_end_keeps_the_layer),
		CO_TEST(nobody_reads_a_layer_that_data_goes_past),
		CO_TEST(the_chain_is_as_before_when_cancelled),
		CO_TEST(every_failure_leaves_the_chain_as_it_was),
		CO_TEST(a_failing_header_leaves_the_chain_as_it_was),
		CO_TEST(read_errors_are_tried_again_if_told_so),
		CO_TEST(nobody_else_may_write_to_the_base),
		CO_TEST(the_active_layer_goes_down_and_the_guest_with_it),
		CO_TEST(who_came_to_the_active_layer_later_goes_along),
		CO_TEST(who_came_to_the_middle_later_goes_along),
		CO_TEST(what_a_short_layer_with_a_writer_hides_stays_hidden),
		CO_TEST(nobody_may_write_to_the_active_layer_past_the_job),
		CO_TEST(a_ready_commit_that_is_cancelled_softly_keeps_the_active_layer),
		CO_TEST(zeroes_that_a_guest_is_writing_over_do_not_go_down_behind_it),
		CO_TEST(guests_on_several_loops_lose_nothing),
		CO_TEST(a_base_that_fails_while_ready_is_caught_up_with),
		CO_TEST(an_active_commit_that_fails_keeps_the_active_layer),
		CO_TEST(bad_arguments_are_refused_with_the_peers_words),
		CO_TEST(a_base_that_cannot_be_written_is_refused_at_the_start),
		CO_TEST(a_start_without_memory_leaves_nothing),
		CO_TEST(an_active_start_without_memory_leaves_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
