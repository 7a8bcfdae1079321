/* SPDX-License-Identifier: Apache-2.0 */
/* What works on a disk that hangs holds up those whom it concerns, and nobody else.
 * All of it runs on one loop. */
#include "aio/co.h"
#include "block/change.h"
#include "block/io.h"
#include "block/qcow2/mark.h"
#include "block/qcow2/qcow2.h"
#include "block/snapshot.h"
#include "tests/support/passfilter.h"
#include "tests/unit/block_test.h"

enum { SIZE = 1 << 20, HANGS = 1 << 30 };

struct world {
	struct memdisk *disk, *other_disk, *base_disk;
	struct node *n, *other, *base;	/* n is on the disk that hangs */
	struct root *user;
	struct co_group work;
	unsigned ended;			/* of what was started */
	bool was_read;
};

struct task {
	struct world *w;
	void (*fn)(struct world *w);
};

static void
carry_out(void *arg)
{
	struct task *t = arg;

	t->fn(t->w);
	t->w->ended++;
}

/* Start it, and let it come as far as it can. */
static void
begin(struct world *w, struct task *t, void (*fn)(struct world *w))
{
	*t = (struct task){ w, fn };
	assert_int_equal(co_group_start(&w->work, carry_out, t), 0);
	for (int i = 0; i < 20; i++)
		co_yield();
}

static void
end_all(struct world *w, unsigned expected)
{
	assert_int_equal(w->ended, 0);
	w->disk->yields = 0;
	co_group_wait(&w->work);
	assert_int_equal(w->ended, expected);
	w->ended = 0;
}

/* ---- what works, and what else may be wanted of its node ---- */

static void
grow(struct world *w)
{
	MUST(node_resize(w->n, SIZE + 65536, &err));
}

static void
grow_more(struct world *w)
{
	MUST(node_resize(w->n, SIZE + 2 * 65536, &err));
}

static void
take_snapshot(struct world *w)
{
	MUST(node_snapshot_take(w->n, "a", &err));
}

static void
take_another_snapshot(struct world *w)
{
	MUST(node_snapshot_take(w->n, "b", &err));
}

static void
use(struct world *w)
{
	char byte = 'x';
	struct iov v = IOV_BUF(&byte, 1);
	struct root *r = must_root(w->n, PERM_WRITE, PERM_ALL);

	assert_int_equal(io_write(r, 0, &v, 0), 0);
	root_free(r);
}

static void
filter_in_and_out(struct node *n, const char *name)
{
	struct node *f = NULL;

	MUST(passfilter_open(n, name, &f, &err));
	MUST(node_insert_above(n, f, &err));
	MUST(node_remove_filter(f, &err));
	node_unref(f);
}

static void
filter(struct world *w)
{
	filter_in_and_out(w->n, "f");
}

static void
leave(struct world *w)
{
	root_free(w->user);
}

/* All that a graph knows, with a disk that does not hang. */
static void
change_another(struct world *w)
{
	struct node *raw = NULL;
	struct root *r;

	MUST(open_raw("raw", "other", false, &raw, &err));
	r = must_root(raw, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
	filter_in_and_out(w->other, "g");
	MUST(node_resize(raw, node_size(raw) + 512, &err));
	MUST(root_set_perm(r, PERM_CONSISTENT_READ, PERM_ALL, &err));
	root_free(r);
	node_unref(raw);
}

/* ---- a raw disk ---- */

static void
set_up(struct world *w)
{
	co_group_init(&w->work);
	w->disk = memdisk_new(SIZE);
	w->other_disk = memdisk_new(SIZE);
	w->n = must_mem(w->disk, "disk");
	w->other = must_mem(w->other_disk, "other");
}

static void
tear_down(struct world *w)
{
	node_unref(w->n);
	node_unref(w->other);
	memdisk_free(w->disk);
	memdisk_free(w->other_disk);
}

static void
a_disk_that_hangs_while_it_grows_holds_up_no_other_co(void *arg)
{
	struct world w = { 0 };
	struct task t;

	(void)arg;
	set_up(&w);
	w.disk->yields = HANGS;
	begin(&w, &t, grow);
	change_another(&w);
	end_all(&w, 1);
	assert_int_equal(node_size(w.n), SIZE + 65536);
	tear_down(&w);
}

static void
what_concerns_a_disk_waits_until_it_has_grown_co(void *arg)
{
	void (*const others[])(struct world *w) = { use, filter, grow_more, leave };
	struct world w = { 0 };
	struct task t[1 + ARRAY_SIZE(others)];

	(void)arg;
	set_up(&w);
	w.user = must_root(w.n, PERM_CONSISTENT_READ, PERM_ALL);
	w.disk->yields = HANGS;
	begin(&w, &t[0], grow);
	for (size_t i = 0; i < ARRAY_SIZE(others); i++)
		begin(&w, &t[1 + i], others[i]);
	/* They hold up nobody either. */
	change_another(&w);
	end_all(&w, ARRAY_SIZE(t));
	assert_int_equal(node_size(w.n), SIZE + 2 * 65536);
	tear_down(&w);
}

static void
change_both(struct world *w)
{
	struct node *both[] = { w->n, w->other };
	struct change c;

	MUST(change_begin(&c, both, 2, &err));
	assert_int_equal(change_end(&c, 0), 0);
}

static void
read_other(struct world *w)
{
	char byte;
	struct iov v = IOV_BUF(&byte, 1);

	assert_int_equal(io_read(w->user, 0, &v), 0);
	w->was_read = true;
}

static void
who_waits_for_a_disk_that_hangs_holds_up_no_user_of_others_co(void *arg)
{
	struct world w = { 0 };
	struct task t[3];

	(void)arg;
	set_up(&w);
	w.user = must_root(w.other, PERM_CONSISTENT_READ, PERM_ALL);
	w.disk->yields = HANGS;
	begin(&w, &t[0], grow);
	begin(&w, &t[1], change_both);
	begin(&w, &t[2], read_other);
	assert_true(w.was_read);
	w.ended = 0;
	end_all(&w, 2);
	root_free(w.user);
	tear_down(&w);
}

/* ---- an image, over a base that others stand on too ---- */

static int
open_overlay(const char *name, const char *file, struct node **ret, struct error **errp)
{
	struct BlockdevRef ref = { .type = BLOCKDEV_REF_REFERENCE,
				   .u.reference = (char *)file };
	struct BlockdevRefOrNull under = { .type = BLOCKDEV_REF_OR_NULL_REFERENCE,
					   .u.reference = (char *)"base" };
	struct BlockdevOptions o = { .driver = BLOCKDEV_DRIVER_QCOW2, .node_name = (char *)name,
				     .u.qcow2 = { .file = &ref, .backing = &under } };

	return node_open(&o, NULL, ret, errp);
}

static void
make_image(const char *file)
{
	struct BlockdevRef ref = { .type = BLOCKDEV_REF_REFERENCE,
				   .u.reference = (char *)file };
	struct BlockdevCreateOptions o = { .driver = BLOCKDEV_DRIVER_QCOW2,
					   .u.qcow2 = { .file = &ref, .size = SIZE } };

	MUST(driver_find("qcow2")->create(&o, &err));
}

static void
an_image_that_hangs_holds_up_no_other_on_its_base_co(void *arg)
{
	struct world w = { 0 };
	struct task t[3];
	struct node *file, *another = NULL;
	struct root *r;

	(void)arg;
	set_up(&w);
	w.base_disk = memdisk_new(SIZE);
	w.base = must_mem(w.base_disk, "base");
	file = w.n;
	make_image("disk");
	make_image("other");
	MUST(open_overlay("overlay", "disk", &w.n, &err));
	w.disk->yields = HANGS;
	begin(&w, &t[0], take_snapshot);
	begin(&w, &t[1], take_another_snapshot);
	begin(&w, &t[2], use);
	/* The base gets another image, and a user. */
	MUST(open_overlay("another", "other", &another, &err));
	MUST(node_snapshot_take(another, "s", &err));
	r = must_root(w.base, PERM_CONSISTENT_READ, PERM_ALL);
	root_free(r);
	node_unref(another);
	change_another(&w);
	end_all(&w, ARRAY_SIZE(t));
	MUST_FAIL(node_snapshot_take(w.n, "b", &err),
		  "Snapshot with name 'b' already exists on device 'overlay'");
	node_unref(w.n);
	w.n = file;
	node_unref(w.base);
	memdisk_free(w.base_disk);
	tear_down(&w);
}

/* ---- between reading and writing ---- */

/* Waits for its turn, and then finds an image that is not written to any more. */
static void
take_another_snapshot_if_writable(struct world *w)
{
	MUST_FAIL(node_snapshot_take(w->n, "b", &err), "Device 'overlay' is read only");
}

static void
stop_writing(struct world *w)
{
	MUST(node_set_read_only(w->n, true, &err));
}

static void
start_writing(struct world *w)
{
	MUST(node_set_read_only(w->n, false, &err));
}

/* It has tables to write back. */
static void
open_and_write(struct world *w)
{
	static const char text[] = "some text";

	w->base_disk = memdisk_new(SIZE);
	w->base = must_mem(w->base_disk, "base");
	make_image("disk");
	MUST(open_overlay("overlay", "disk", &w->n, &err));
	assert_int_equal(node_pwrite(w->n, 70000, text, sizeof(text)), 0);
}

static void
close_and_tear_down(struct world *w, struct node *file)
{
	node_unref(w->n);
	w->n = file;
	node_unref(w->base);
	memdisk_free(w->base_disk);
	tear_down(w);
}

static void
an_image_that_hangs_as_writing_ends_holds_up_no_other_co(void *arg)
{
	struct world w = { 0 };
	struct task t[2];
	struct node *file;
	char text[10];

	(void)arg;
	set_up(&w);
	file = w.n;
	open_and_write(&w);
	w.disk->yields = HANGS;
	begin(&w, &t[0], stop_writing);
	begin(&w, &t[1], take_another_snapshot_if_writable);
	change_another(&w);
	end_all(&w, ARRAY_SIZE(t));
	assert_true(node_is_read_only(w.n));
	assert_int_equal(node_pread(w.n, 70000, text, sizeof(text)), 0);
	assert_string_equal(text, "some text");
	close_and_tear_down(&w, file);
}

/* An image that is read-only and marked dirty; returns the world's own node. */
static struct node *
set_up_dirty(struct world *w)
{
	struct node *file;

	set_up(w);
	file = w->n;
	open_and_write(w);
	stop_writing(w);
	assert_int_equal(qcow2_mark(w->n->state, QCOW2_INCOMPAT_DIRTY), 0);
	return file;
}

/* As of an image that is marked dirty: it is repaired as writing begins. */
static void
an_image_that_hangs_as_writing_begins_holds_up_no_other_co(void *arg)
{
	struct world w = { 0 };
	struct task t[2];
	struct node *file;

	(void)arg;
	file = set_up_dirty(&w);
	w.disk->yields = HANGS;
	begin(&w, &t[0], start_writing);
	begin(&w, &t[1], use);
	change_another(&w);
	end_all(&w, ARRAY_SIZE(t));
	assert_false(((struct qcow2 *)w.n->state)->header.incompat & QCOW2_INCOMPAT_DIRTY);
	close_and_tear_down(&w, file);
}

/* What cannot be repaired stays read-only. */
static void
an_image_that_does_not_become_writable_is_as_it_was_co(void *arg)
{
	struct world w = { 0 };
	struct node *file;

	(void)arg;
	file = set_up_dirty(&w);
	memdisk_fail(w.disk, 1 << MEMDISK_WRITE, 1, -EIO, true);
	assert_int_equal(node_set_read_only(w.n, false, NULL), -1);
	assert_true(node_is_read_only(w.n));
	memdisk_fail(w.disk, 1 << MEMDISK_WRITE, 0, 0, false);
	MUST_FAIL(root_new(w.n, "root", PERM_WRITE, PERM_ALL, NULL, NULL, &w.user, &err),
		  "Block node is read-only");
	close_and_tear_down(&w, file);
}

#define WORK_TESTS(X)                                                          \
	X(a_disk_that_hangs_while_it_grows_holds_up_no_other)                  \
	X(what_concerns_a_disk_waits_until_it_has_grown)                       \
	X(who_waits_for_a_disk_that_hangs_holds_up_no_user_of_others)          \
	X(an_image_that_hangs_holds_up_no_other_on_its_base)                   \
	X(an_image_that_hangs_as_writing_ends_holds_up_no_other)               \
	X(an_image_that_hangs_as_writing_begins_holds_up_no_other)             \
	X(an_image_that_does_not_become_writable_is_as_it_was)

#define DEFINE(name)                                                           \
	static void name(void **state)                                         \
	{                                                                      \
		(void)state;                                                   \
		run(name##_co, NULL);                                          \
	}
WORK_TESTS(DEFINE)
#define LIST_TEST(name) CO_TEST(name),

int
main(void)
{
	const struct CMUnitTest tests[] = { WORK_TESTS(LIST_TEST) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
