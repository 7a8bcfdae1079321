/* SPDX-License-Identifier: Apache-2.0 */
/* Every allocation fails in turn: the call fails, and nothing is left behind. */
#include "block/graph.h"
#include "tests/support/failheap.h"
#include "tests/support/passfilter.h"
#include "tests/unit/block_test.h"

struct scene {
	char *path;
	int result;
};

static int
open_tree(const char *path, struct node **ret, struct error **errp)
{
	struct BlockdevRef ref = { .type = BLOCKDEV_REF_DEFINITION };
	struct BlockdevOptions o = { .driver = BLOCKDEV_DRIVER_RAW,
				     .node_name = (char *)"raw", .u.raw.file = &ref };

	ref.u.definition.driver = BLOCKDEV_DRIVER_FILE;
	ref.u.definition.node_name = (char *)"file";
	ref.u.definition.u.file.filename = (char *)path;
	return node_open(&o, NULL, ret, errp);
}

static int
with_filter(struct node *n, struct error **errp)
{
	struct BlockDeviceInfoList *l = NULL;
	struct node *f = NULL;
	int r = passfilter_open(n, "f", &f, errp);

	if (r < 0)
		return r;
	r = node_insert_above(n, f, errp);
	if (!r) {
		r = node_query_all(false, &l, errp);
		BlockDeviceInfoList_free(l);
		/* Out again it must get, or the rest holds it. */
		if (node_remove_filter(f, r ? NULL : errp) < 0) {
			failheap_disarm();
			MUST(node_remove_filter(f, &err));
			r = -1;
		}
	}
	node_unref(f);
	return r;
}

static int
with_root(struct node *n, struct error **errp)
{
	struct root *root = NULL;
	char byte = 'x';
	struct iov v = IOV_BUF(&byte, 1);
	int r = root_new(n, "root", PERM_WRITE | PERM_CONSISTENT_READ, PERM_ALL, NULL,
			 NULL, &root, errp);

	if (r < 0)
		return r;
	if (io_write(root, 77, &v, 0) < 0)
		r = error_set(errp, "write");
	if (!r)
		r = with_filter(n, errp);
	if (!r)
		r = root_set_perm(root, PERM_CONSISTENT_READ, PERM_ALL, errp);
	root_free(root);
	return r;
}

static void
play(void *arg)
{
	struct scene *s = arg;
	struct error *err = NULL;
	struct node *n = NULL;

	s->result = open_tree(s->path, &n, &err);
	if (!s->result) {
		s->result = with_root(n, &err);
		if (!s->result)
			s->result = node_resize(n, 2 << 20, &err);
		node_unref(n);
	}
	if (s->result < 0)
		assert_non_null(err);
	error_free(err);
}

static void
nothing_is_left_where_memory_is_short(void **state)
{
	struct scene s = { .path = temp_file(1 << 20) };
	unsigned nth = 0;
	bool failed;

	(void)state;
	run(play, &s);
	assert_int_equal(s.result, 0);
	do {
		failheap_arm(++nth);
		run(play, &s);
		failed = failheap_disarm();
		assert_true(list_empty(&graph_nodes));
		assert_true(s.result == 0 || failed);
	} while (failed);
	assert_int_equal(s.result, 0);
	assert_true(nth > 30);
	/* No lock is left on the file either. */
	run(play, &s);
	assert_int_equal(s.result, 0);
	unlink(s.path);
	free(s.path);
}

int
main(void)
{
	const struct CMUnitTest tests[] = { CO_TEST(nothing_is_left_where_memory_is_short) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
