/* SPDX-License-Identifier: Apache-2.0 */
/* Names, references, permissions and changes of the graph. */
#include <signal.h>
#include <sys/resource.h>

#include "aio/co.h"
#include "block/change.h"
#include "tests/support/passfilter.h"
#include "tests/unit/block_test.h"

enum { MIB = 1 << 20 };

static const char name31[] = "a234567890123456789012345678901";
static const char name32[] = "a2345678901234567890123456789012";

/* ---- names ---- */

static void
names_are_checked_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct node *disk = must_mem(m, "disk"), *n = NULL;

	(void)arg;
	MUST_FAIL(open_raw("1x", "disk", false, &n, &err), "Invalid node-name: '1x'");
	MUST_FAIL(open_raw("", "disk", false, &n, &err), "Invalid node-name: ''");
	MUST_FAIL(open_raw("a b", "disk", false, &n, &err), "Invalid node-name: 'a b'");
	MUST_FAIL(open_raw(name32, "disk", false, &n, &err), "Node name too long");
	MUST_FAIL(open_raw("disk", "disk", false, &n, &err),
		  "Duplicate nodes with node-name='disk'");
	MUST_FAIL(open_raw(NULL, "disk", false, &n, &err),
		  "'node-name' must be specified for the root node");
	MUST_FAIL(open_raw("x", "nope", false, &n, &err),
		  "Cannot find device='nope' nor node-name='nope'");
	assert_null(node_find("x"));
	MUST(open_raw(name31, "disk", false, &n, &err));
	assert_ptr_equal(node_find(name31), n);
	node_unref(n);
	node_unref(disk);
	memdisk_free(m);
}

static void
deleting_says_what_is_in_the_way_co(void *arg)
{
	struct BlockdevOptions o = { .driver = BLOCKDEV_DRIVER_NULL_CO,
				     .node_name = (char *)"null" };
	struct node *raw = NULL;
	struct root *r;

	(void)arg;
	MUST_FAIL(node_del("null", &err), "Failed to find node with node-name='null'");
	MUST(node_add(&o, NULL, &err));
	MUST(open_raw("raw", "null", false, &raw, &err));
	MUST_FAIL(node_del("null", &err), "Block device null is in use");
	MUST_FAIL(node_del("raw", &err), "Node raw is not owned by the monitor");
	r = must_root(raw, 0, PERM_ALL);
	MUST_FAIL(node_del("raw", &err), "Node raw is in use");
	root_free(r);
	node_unref(raw);
	node_set_busy(node_find("null"), "because");
	MUST_FAIL(node_del("null", &err), "Node 'null' is busy: because");
	node_clear_busy(node_find("null"), "because");
	MUST(node_del("null", &err));
	assert_null(node_find("null"));
}

/* ---- permissions ---- */

static char *
describe_writer(void *user)
{
	(void)user;
	return strdup("block device 'w'");
}

static void
conflicts_name_both_sides_co(void *arg)
{
	static const struct root_ops ops = { .describe = describe_writer };
	struct memdisk *m = memdisk_new(MIB);
	struct node *n = must_mem(m, "disk");
	struct root *writer = NULL, *r = NULL;

	(void)arg;
	MUST(root_new(n, "root", PERM_WRITE, PERM_ALL & ~PERM_RESIZE, &ops, NULL,
		      &writer, &err));
	MUST_FAIL(root_new(n, "other", PERM_RESIZE | PERM_WRITE, PERM_ALL, NULL, NULL, &r,
			   &err),
		  "Permission conflict on node 'disk': permissions 'resize' are both "
		  "required by an unnamed block device (uses node 'disk' as 'other' child) "
		  "and unshared by block device 'w' (uses node 'disk' as 'root' child).");
	MUST_FAIL(root_new(n, "other", 0, PERM_CONSISTENT_READ, NULL, NULL, &r, &err),
		  "Permission conflict on node 'disk': permissions 'write' are both "
		  "required by block device 'w' (uses node 'disk' as 'root' child) "
		  "and unshared by an unnamed block device (uses node 'disk' as 'other' "
		  "child).");
	assert_null(r);
	assert_int_equal(n->perm, PERM_WRITE);
	assert_int_equal(n->shared, PERM_ALL & ~PERM_RESIZE);
	root_free(writer);
	assert_int_equal(n->perm, 0);
	assert_int_equal(n->shared, PERM_ALL);
	node_unref(n);
	memdisk_free(m);
}

static void
permissions_reach_through_the_graph_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct node *disk = must_mem(m, "disk"), *a = NULL, *b = NULL;
	struct root *ra, *rb = NULL;

	(void)arg;
	MUST(open_raw("a", "disk", false, &a, &err));
	MUST(open_raw("b", "disk", false, &b, &err));
	ra = must_root(a, PERM_CONSISTENT_READ | PERM_WRITE,
		       PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED);
	assert_int_equal(disk->perm, PERM_CONSISTENT_READ | PERM_WRITE);
	MUST_FAIL(root_new(b, "root", PERM_WRITE, PERM_ALL, NULL, NULL, &rb, &err),
		  "Permission conflict on node 'disk': permissions 'write' are both "
		  "required by node 'b' (uses node 'disk' as 'file' child) and unshared by "
		  "node 'a' (uses node 'disk' as 'file' child).");
	MUST(root_set_perm(ra, PERM_CONSISTENT_READ, PERM_ALL, &err));
	rb = must_root(b, PERM_WRITE, PERM_ALL);
	root_free(ra);
	root_free(rb);
	assert_int_equal(disk->perm, 0);
	node_unref(a);
	node_unref(b);
	node_unref(disk);
	memdisk_free(m);
}

static void
read_only_nodes_take_no_writers_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct node *n = NULL;
	struct root *r = NULL;

	(void)arg;
	MUST(memdisk_open(m, "disk", true, &n, &err));
	MUST_FAIL(root_new(n, "root", PERM_WRITE, PERM_ALL, NULL, NULL, &r, &err),
		  "Block node is read-only");
	node_unref(n);
	memdisk_free(m);
}

static void
backing_files_are_only_read_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct node *n = must_mem(m, "disk");
	perm_set perm, shared;

	(void)arg;
	perm_default(n, ROLE_COW, PERM_ALL, PERM_CONSISTENT_READ, &perm, &shared);
	assert_int_equal(perm, PERM_CONSISTENT_READ);
	assert_int_equal(shared, PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED);
	perm_default(n, ROLE_COW, 0, PERM_ALL, &perm, &shared);
	assert_int_equal(shared, PERM_ALL);
	perm_default(n, ROLE_IMAGE, 0, PERM_ALL, &perm, &shared);
	assert_int_equal(perm, PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE);
	assert_int_equal(shared, PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED);
	n->read_only = true;
	perm_default(n, ROLE_IMAGE, 0, PERM_ALL, &perm, &shared);
	assert_int_equal(perm, PERM_CONSISTENT_READ);
	node_unref(n);
	memdisk_free(m);
}

/* ---- changes ---- */

static void
filters_go_in_and_out_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct node *disk = must_mem(m, "disk"), *raw = NULL, *f = NULL;
	struct root *r;

	(void)arg;
	MUST(open_raw("raw", "disk", false, &raw, &err));
	r = must_root(disk, PERM_WRITE, PERM_ALL);
	MUST(passfilter_open(disk, "f", &f, &err));
	MUST(node_insert_above(disk, f, &err));
	assert_ptr_equal(root_node(r), f);
	assert_ptr_equal(node_file(raw), f);
	assert_ptr_equal(node_file(f), disk);
	assert_int_equal(disk->perm, PERM_WRITE);
	assert_ptr_equal(node_skip_filters(root_node(r)), disk);
	MUST(node_remove_filter(f, &err));
	assert_ptr_equal(root_node(r), disk);
	assert_ptr_equal(node_file(raw), disk);
	assert_int_equal(f->refs, 1);
	node_unref(f);
	assert_null(node_find("f"));
	root_free(r);
	node_unref(raw);
	node_unref(disk);
	memdisk_free(m);
}

/* Written before a filter came, flushed behind it. */
static void
a_flush_reaches_what_was_written_below_a_new_filter_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct node *disk = must_mem(m, "disk"), *f = NULL;
	struct root *r = must_root(disk, PERM_WRITE, PERM_ALL);
	char byte = 'x';
	struct iov v = IOV_BUF(&byte, 1);

	(void)arg;
	assert_int_equal(io_write(r, 0, &v, 0), 0);
	MUST(passfilter_open(disk, "f", &f, &err));
	MUST(node_insert_above(disk, f, &err));
	assert_int_equal(io_flush(r), 0);
	assert_int_equal(m->calls[MEMDISK_FLUSH], 1);
	assert_int_equal(io_write(r, 0, &v, 0), 0);
	MUST(node_remove_filter(f, &err));
	assert_int_equal(io_flush(r), 0);
	assert_int_equal(m->calls[MEMDISK_FLUSH], 2);
	root_free(r);
	node_unref(f);
	node_unref(disk);
	memdisk_free(m);
}

static void
closing_stores_what_nobody_flushed_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct node *disk = must_mem(m, "disk");
	char byte = 'x';

	(void)arg;
	assert_int_equal(node_pwrite(disk, 0, &byte, 1), 0);
	node_unref(disk);
	assert_int_equal(m->calls[MEMDISK_FLUSH], 1);
	MUST(memdisk_open(m, "disk", false, &disk, &err));
	node_unref(disk);
	assert_int_equal(m->calls[MEMDISK_FLUSH], 1);
	memdisk_free(m);
}

static void
a_failed_change_leaves_no_trace_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB), *m2 = memdisk_new(MIB);
	struct node *disk = must_mem(m, "disk"), *other = NULL, *raw = NULL;
	struct root *r;

	(void)arg;
	MUST(memdisk_open(m2, "other", true, &other, &err));
	MUST(open_raw("raw", "disk", false, &raw, &err));
	r = must_root(raw, PERM_WRITE, PERM_ALL);
	MUST_FAIL(node_replace(disk, other, &err), "Block node is read-only");
	assert_ptr_equal(node_file(raw), disk);
	assert_int_equal(disk->perm, PERM_WRITE);
	assert_int_equal(other->perm, 0);
	assert_int_equal(other->refs, 1);
	root_free(r);
	node_unref(raw);
	node_unref(other);
	node_unref(disk);
	memdisk_free(m);
	memdisk_free(m2);
}

static void
replacing_moves_users_but_closes_no_cycle_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct node *disk = must_mem(m, "disk"), *raw = NULL;
	struct root *r;

	(void)arg;
	MUST(open_raw("raw", "disk", false, &raw, &err));
	r = must_root(disk, 0, PERM_ALL);
	MUST(node_replace(disk, raw, &err));
	assert_ptr_equal(root_node(r), raw);
	assert_ptr_equal(node_file(raw), disk);
	root_free(r);
	node_unref(raw);
	node_unref(disk);
	memdisk_free(m);
}

static void
roots_wait_while_stopped_co(void *arg)
{
	struct memdisk *m = memdisk_new(MIB);
	struct node *disk = must_mem(m, "disk");
	struct root *r = must_root(disk, 0, PERM_ALL);

	(void)arg;
	assert_int_equal(root_enter(r), 0);
	root_leave(r);
	root_stop(r);
	root_wait_idle(r);
	root_stop(r);
	root_resume(r);
	root_resume(r);
	assert_int_equal(root_enter(r), 0);
	root_leave(r);
	root_free(r);
	node_unref(disk);
	memdisk_free(m);
}

struct hang {
	struct node *on, *filter;
	bool done;
};

static void
insert_behind_a_hang(void *arg)
{
	struct hang *h = arg;

	MUST(node_insert_above(h->on, h->filter, &err));
	h->done = true;
}

/* A request that hangs holds up changes above its node, and no others. */
static void
a_node_that_hangs_holds_up_no_other_co(void *arg)
{
	struct memdisk *m[2] = { memdisk_new(MIB), memdisk_new(MIB) };
	struct node *stuck = must_mem(m[0], "stuck"), *well = must_mem(m[1], "well");
	struct root *r = must_root(stuck, 0, PERM_ALL);
	struct hang h = { .on = stuck };
	struct node *f = NULL;
	struct co_group g;

	(void)arg;
	MUST(passfilter_open(stuck, "f", &h.filter, &err));
	assert_int_equal(root_enter(r), 0);
	co_group_init(&g);
	assert_int_equal(co_group_start(&g, insert_behind_a_hang, &h), 0);
	assert_false(h.done);
	MUST(passfilter_open(well, "g", &f, &err));
	MUST(node_insert_above(well, f, &err));
	MUST(node_remove_filter(f, &err));
	assert_false(h.done);
	root_leave(r);
	co_group_wait(&g);
	assert_true(h.done);
	assert_ptr_equal(root_node(r), h.filter);
	root_free(r);
	node_unref(f);
	node_unref(h.filter);
	node_unref(well);
	node_unref(stuck);
	memdisk_free(m[0]);
	memdisk_free(m[1]);
}

struct claimer {
	struct node *n;
	struct root *root;
};

static void
claim_node(void *arg)
{
	struct claimer *c = arg;

	MUST(root_new(c->n, "root", 0, PERM_ALL, NULL, NULL, &c->root, &err));
}

/* A user who waits for his turn to claim a node finds it there when it comes. */
static void
who_waits_to_claim_a_node_keeps_it_co(void *arg)
{
	struct BlockdevOptions o = { .driver = BLOCKDEV_DRIVER_NULL_CO,
				     .node_name = (char *)"null" };
	struct claimer claimer = { 0 };
	struct change other;
	struct co_group g;

	(void)arg;
	MUST(node_add(&o, NULL, &err));
	claimer.n = node_find("null");
	MUST(change_begin(&other, NULL, 0, &err));
	co_group_init(&g);
	assert_int_equal(co_group_start(&g, claim_node, &claimer), 0);
	assert_null(claimer.root);
	MUST_FAIL(node_del("null", &err), "Block device null is in use");
	assert_int_equal(change_end(&other, 0), 0);
	co_group_wait(&g);
	assert_ptr_equal(root_node(claimer.root), claimer.n);
	root_free(claimer.root);
	MUST(node_del("null", &err));
}

struct looker {
	struct node *n;
	struct co *co;
	bool done;
};

static void
look_until_woken(void *arg)
{
	struct looker *l = arg;

	node_pin(l->n);
	l->co = co_self();
	while (!l->done)
		co_park();
	node_unpin(l->n);
}

static void
delete_null(void *arg)
{
	bool *gone = arg;

	MUST(node_del("null", &err));
	*gone = true;
}

static void
who_looks_does_not_hinder_deleting_co(void *arg)
{
	struct BlockdevOptions o = { .driver = BLOCKDEV_DRIVER_NULL_CO,
				     .node_name = (char *)"null" };
	struct looker l = { 0 };
	struct co_group g;
	bool gone = false;

	(void)arg;
	MUST(node_add(&o, NULL, &err));
	l.n = node_find("null");
	co_group_init(&g);
	assert_int_equal(co_group_start(&g, look_until_woken, &l), 0);
	assert_int_equal(co_group_start(&g, delete_null, &gone), 0);
	assert_false(gone);
	assert_null(node_find("null"));
	MUST_FAIL(node_add(&o, NULL, &err), "Duplicate nodes with node-name='null'");
	l.done = true;
	co_wake(l.co);
	co_group_wait(&g);
	assert_true(gone);
	MUST(node_add(&o, NULL, &err));
	MUST(node_del("null", &err));
}

/* ---- files ---- */

static void
files_are_locked_for_their_users_co(void *arg)
{
	char *path = temp_file(MIB);
	struct node *a = NULL, *b = NULL;
	struct root *ra, *rb = NULL;

	(void)arg;
	MUST(open_file("a", path, false, &a, &err));
	MUST(open_file("b", path, false, &b, &err));
	ra = must_root(a, PERM_WRITE, PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED);
	MUST_FAIL(root_new(b, "root", PERM_WRITE, PERM_ALL, NULL, NULL, &rb, &err),
		  "Failed to get \"write\" lock");
	MUST_FAIL(root_new(b, "root", PERM_CONSISTENT_READ, PERM_CONSISTENT_READ, NULL,
			   NULL, &rb, &err),
		  "Failed to get shared \"write\" lock");
	rb = must_root(b, PERM_CONSISTENT_READ, PERM_ALL);
	root_free(rb);
	root_free(ra);
	rb = must_root(b, PERM_WRITE, PERM_CONSISTENT_READ);
	root_free(rb);
	node_unref(a);
	node_unref(b);
	unlink(path);
	free(path);
}

static void
auto_read_only_opens_for_writing_when_needed_co(void *arg)
{
	char *path = temp_file(MIB), byte = 'w';
	struct BlockdevOptions o = { .driver = BLOCKDEV_DRIVER_FILE,
				     .node_name = (char *)"f",
				     .has_auto_read_only = true, .auto_read_only = true,
				     .u.file.filename = path };
	struct iov v = IOV_BUF(&byte, 1);
	struct node *n = NULL;
	struct root *r;

	(void)arg;
	MUST(node_open(&o, NULL, &n, &err));
	r = must_root(n, PERM_CONSISTENT_READ, PERM_ALL);
	MUST(root_set_perm(r, PERM_WRITE, PERM_CONSISTENT_READ, &err));
	assert_int_equal(io_write(r, 0, &v, 0), 0);
	root_free(r);
	node_unref(n);
	unlink(path);
	free(path);
}

static void
a_read_only_file_can_be_switched_co(void *arg)
{
	char *path = temp_file(MIB), byte = 'w';
	struct BlockdevRef ref = { .type = BLOCKDEV_REF_DEFINITION };
	struct BlockdevOptions o = { .driver = BLOCKDEV_DRIVER_RAW,
				     .node_name = (char *)"raw", .has_read_only = true,
				     .read_only = true, .u.raw.file = &ref };
	struct iov v = IOV_BUF(&byte, 1);
	struct root *r = NULL;
	struct node *n = NULL;

	(void)arg;
	ref.u.definition.driver = BLOCKDEV_DRIVER_FILE;
	ref.u.definition.u.file.filename = path;
	MUST(node_open(&o, NULL, &n, &err));
	assert_true(node_is_read_only(node_file(n)));
	MUST(node_set_read_only(n, false, &err));
	r = must_root(n, PERM_WRITE, PERM_CONSISTENT_READ);
	assert_int_equal(io_write(r, 0, &v, 0), 0);
	MUST_FAIL(node_set_read_only(n, true, &err),
		  "Read-only block node 'raw' cannot support read-write users");
	assert_int_equal(io_write(r, 0, &v, 0), 0);
	root_free(r);
	MUST(node_set_read_only(n, true, &err));
	assert_true(node_is_read_only(node_file(n)));
	node_unref(n);
	unlink(path);
	free(path);
}

static void
files_that_are_not_there_say_so_co(void *arg)
{
	struct node *n = NULL;

	(void)arg;
	MUST_FAIL(open_file("f", "/nonexistent/x", false, &n, &err),
		  "Could not open '/nonexistent/x': No such file or directory");
	MUST_FAIL(open_file("f", "/dev/null", false, &n, &err),
		  "'file' driver requires '/dev/null' to be a regular file");
	MUST_FAIL(open_file("f", "/tmp", false, &n, &err),
		  "Could not open '/tmp': Is a directory");
	assert_null(node_find("f"));
}

static void
holes_are_seen_co(void *arg)
{
	char *path = temp_file(4 * MIB), buf[512];
	struct node *f = NULL, *raw = NULL;
	struct extent x;
	struct root *r;

	(void)arg;
	MUST(open_file("f", path, false, &f, &err));
	MUST(open_raw("raw", "f", false, &raw, &err));
	memset(buf, 'x', sizeof(buf));
	assert_int_equal(node_pwrite(raw, 2 * MIB, buf, sizeof(buf)), 0);
	r = must_root(raw, 0, PERM_ALL);
	assert_int_equal(io_status(r, 0, 4 * MIB, true, &x), 0);
	assert_int_equal(x.flags & (EXTENT_ZERO | EXTENT_DATA), EXTENT_ZERO);
	assert_int_equal(x.len, 2 * MIB);
	assert_int_equal(io_status(r, 2 * MIB, 2 * MIB, true, &x), 0);
	assert_true(x.flags & EXTENT_DATA);
	assert_true(x.len < 2 * MIB);
	assert_int_equal(io_status(r, 3 * MIB, MIB, true, &x), 0);
	assert_true(x.flags & EXTENT_EOF);
	assert_int_equal(io_status(r, 0, 4 * MIB, false, &x), 0);
	assert_true(x.flags & EXTENT_DATA);
	root_free(r);
	node_unref(raw);
	node_unref(f);
	unlink(path);
	free(path);
}

/* The rest of it is there, and would show behind a zeroing that ended before it. */
static void
a_write_that_fails_half_way_makes_its_file_longer_co(void *arg)
{
	const struct rlimit none = { RLIM_INFINITY, RLIM_INFINITY }, limit = { 70000, RLIM_INFINITY };
	char *path = temp_file(4096), *buf = malloc(MIB);
	struct node *f = NULL;

	(void)arg;
	signal(SIGXFSZ, SIG_IGN);
	memset(buf, 'x', MIB);
	MUST(open_file("f", path, false, &f, &err));
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	assert_int_equal(node_pwrite(f, 0, buf, MIB), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
	assert_int_equal(node_size(f), round_up(70000, 512));
	assert_int_equal(node_pread(f, 0, buf, node_size(f)), 0);
	assert_int_equal(buf[69999], 'x');
	assert_int_equal(buf[70000], 0);
	node_unref(f);
	unlink(path);
	free(path);
	free(buf);
}

static void
raw_grows_with_its_file_co(void *arg)
{
	char *path = temp_file(MIB);
	struct node *f = NULL, *raw = NULL;
	struct root *r = NULL;

	(void)arg;
	MUST(open_file("f", path, false, &f, &err));
	MUST(open_raw("raw", "f", false, &raw, &err));
	MUST(node_resize(raw, 3 * MIB, &err));
	assert_int_equal(node_size(raw), 3 * MIB);
	assert_int_equal(node_size(f), 3 * MIB);
	r = must_root(raw, 0, PERM_ALL & ~PERM_RESIZE);
	MUST_FAIL(node_resize(raw, 4 * MIB, &err),
		  "Permission conflict on node 'raw': permissions 'resize' are both "
		  "required by an unnamed block device (uses node 'raw' as 'root' child) "
		  "and unshared by an unnamed block device (uses node 'raw' as 'root' "
		  "child).");
	assert_int_equal(node_size(raw), 3 * MIB);
	root_free(r);
	node_unref(raw);
	node_unref(f);
	unlink(path);
	free(path);
}

/* ---- the refusal ---- */

static void
luks_is_refused_with_the_way_out_co(void *arg)
{
	char *path = temp_file(MIB), text[512];
	struct BlockdevRef ref = { .type = BLOCKDEV_REF_DEFINITION };
	struct BlockdevOptions o = { .driver = BLOCKDEV_DRIVER_LUKS,
				     .node_name = (char *)"top", .u.luks.file = &ref };
	struct node *n = NULL, *f = NULL;

	(void)arg;
	ref.u.definition.driver = BLOCKDEV_DRIVER_FILE;
	ref.u.definition.u.file.filename = path;
	MUST_FAIL(node_open(&o, NULL, &n, &err), "Volume is not in LUKS format");
	MUST(open_file("f", path, false, &f, &err));
	assert_int_equal(node_pwrite(f, 0, "LUKS\xba\xbe\0\1", 8), 0);
	node_unref(f);
	snprintf(text, sizeof(text),
		 "Node 'top' cannot be opened: '%s' is encrypted (LUKS); Quoin serves no "
		 "encrypted images; decrypt it first with: quoin rescue %s %s.raw",
		 path, path, path);
	for (int i = 0; i < 2; i++) {
		MUST_FAIL(node_open(&o, NULL, &n, &err), text);
		assert_null(node_find("top"));
	}
	/* The bytes themselves are free to see. */
	MUST(open_file("f", path, false, &f, &err));
	MUST(open_raw("top", "f", false, &n, &err));
	node_unref(n);
	node_unref(f);
	unlink(path);
	free(path);
}

#define GRAPH_TESTS(X)                                                         \
	X(names_are_checked)                                                   \
	X(deleting_says_what_is_in_the_way)                                    \
	X(conflicts_name_both_sides)                                           \
	X(permissions_reach_through_the_graph)                                 \
	X(read_only_nodes_take_no_writers)                                     \
	X(backing_files_are_only_read)                                         \
	X(filters_go_in_and_out)                                               \
	X(a_flush_reaches_what_was_written_below_a_new_filter)                 \
	X(closing_stores_what_nobody_flushed)                                  \
	X(a_failed_change_leaves_no_trace)                                     \
	X(replacing_moves_users_but_closes_no_cycle)                           \
	X(roots_wait_while_stopped)                                            \
	X(a_node_that_hangs_holds_up_no_other)                                 \
	X(who_waits_to_claim_a_node_keeps_it)                                  \
	X(who_looks_does_not_hinder_deleting)                                  \
	X(files_are_locked_for_their_users)                                    \
	X(auto_read_only_opens_for_writing_when_needed)                        \
	X(a_read_only_file_can_be_switched)                                    \
	X(files_that_are_not_there_say_so)                                     \
	X(holes_are_seen)                                                      \
	X(a_write_that_fails_half_way_makes_its_file_longer)                   \
	X(raw_grows_with_its_file)                                             \
	X(luks_is_refused_with_the_way_out)

#define DEFINE(name)                                                           \
	static void name(void **state)                                         \
	{                                                                      \
		(void)state;                                                   \
		run(name##_co, NULL);                                          \
	}
GRAPH_TESTS(DEFINE)
#define LIST_TEST(name) CO_TEST(name),

int
main(void)
{
	const struct CMUnitTest tests[] = { GRAPH_TESTS(LIST_TEST) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
