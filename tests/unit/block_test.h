/* SPDX-License-Identifier: Apache-2.0 */
/* tests/unit/block_test.h - what the tests of block/ share. */
#ifndef TESTS_UNIT_BLOCK_TEST_H
#define TESTS_UNIT_BLOCK_TEST_H

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "aio/colock.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/io.h"
#include "block/node.h"
#include "block/root.h"
#include "schema/types.h"
#include "tests/support/memdisk.h"
#include "tests/unit/aio_test.h"

/* Fail the test with the error's text where a call that must work did not. */
#define MUST(expr)                                                             \
	do {                                                                   \
		struct error *err = NULL;                                      \
		if ((expr) < 0)                                                \
			fail_msg("%s: %s", #expr, err ? error_text(err) : "?"); \
	} while (0)

/* Expect failure with exactly this text. */
#define MUST_FAIL(expr, text)                                                  \
	do {                                                                   \
		struct error *err = NULL;                                      \
		assert_true((expr) < 0);                                       \
		assert_non_null(err);                                          \
		assert_string_equal(error_text(err), (text));                  \
		error_free(err);                                               \
	} while (0)

static inline struct root *
must_root(struct node *n, perm_set perm, perm_set shared)
{
	struct root *r = NULL;

	MUST(root_new(n, "root", perm, shared, NULL, NULL, &r, &err));
	return r;
}

static inline struct node *
must_mem(struct memdisk *m, const char *name)
{
	struct node *n = NULL;

	MUST(memdisk_open(m, name, false, &n, &err));
	return n;
}

/* raw over a node that is there already. */
static inline int
open_raw(const char *name, const char *file, bool read_only, struct node **ret,
	 struct error **errp)
{
	struct BlockdevRef ref = { .type = BLOCKDEV_REF_REFERENCE,
				   .u.reference = (char *)file };
	struct BlockdevOptions o = { .driver = BLOCKDEV_DRIVER_RAW,
				     .node_name = (char *)name,
				     .has_read_only = true, .read_only = read_only,
				     .u.raw.file = &ref };

	return node_open(&o, NULL, ret, errp);
}

static inline int
open_file(const char *name, const char *path, bool read_only, struct node **ret,
	  struct error **errp)
{
	struct BlockdevOptions o = { .driver = BLOCKDEV_DRIVER_FILE,
				     .node_name = (char *)name,
				     .has_read_only = true, .read_only = read_only,
				     .u.file.filename = (char *)path };

	return node_open(&o, NULL, ret, errp);
}

/* A new file of size bytes in a temporary folder; the caller unlinks and frees. */
static inline char *
temp_file(uint64_t size)
{
	char *path = strdup("/tmp/quoin-test-XXXXXX");
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	close(fd);
	return path;
}

#endif
