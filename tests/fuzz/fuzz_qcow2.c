/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target: a qcow2 image, opened, read, written to and checked. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "aio/loop.h"
#include "base/bytes.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/qcow2/check.h"
#include "block/qcow2/qcow2.h"
#include "tests/unit/qcow2_mem.h"

enum { PART = 65536, FILE_MAX = 8 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerInitialize(int *argc, char ***argv);

struct input {
	const uint8_t *data;
	size_t len;
};

/* Both ends of the disk, and its middle. */
static void
touch(struct node *n, uint8_t *buf)
{
	uint64_t size = atomic_load(&n->size), part = min_u64(size, PART);
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
}

static void
use(void *arg)
{
	const struct input *in = arg;
	uint8_t *buf = calloc(1, PART);

	for (int read_only = 0; read_only < 2; read_only++) {
		struct node *file = mem_new(), *n;
		struct check_result c;

		mem_faults(file)->max = FILE_MAX;
		if (!buf || node_pwrite(file, 0, in->data, in->len))
			abort();
		n = q2_open(file, NULL, read_only, NULL);
		if (n) {
			touch(n, buf);
			(void)qcow2_settle(n->state);
			(void)qcow2_check(n->state, read_only ? 0 : CHECK_FIX_LEAKS | CHECK_FIX_ERRORS,
					  NULL, &c);
			(void)q2_close(n);
		}
		mem_free(file);
	}
	free(buf);
}

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	return loops_start(1, LOOPS_NO_URING, NULL);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct input in = { data, len };

	if (len > FILE_MAX || loop_run_co(use, &in))
		return 0;
	return 0;
}
