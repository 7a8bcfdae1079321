/* SPDX-License-Identifier: Apache-2.0 */
/* tests/unit/nbd_test.h - a server with one export, for tests of export/nbd.
 *
 * The node "n" is a null-co that reads as zeroes, exported as "disk".
 */
#ifndef TESTS_UNIT_NBD_TEST_H
#define TESTS_UNIT_NBD_TEST_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "aio/co.h"
#include "base/error.h"
#include "block/node.h"
#include "block/open.h"
#include "export/export.h"
#include "export/nbd/conn.h"
#include "export/nbd/export.h"
#include "export/nbd/proto.h"
#include "export/nbd/server.h"
#include "schema/types.h"

enum { NBD_TEST_SIZE = 1 << 20 };

static unsigned nbd_test_deleted;	/* events that came */

static inline void
nbd_test_on_deleted(const char *id)
{
	(void)id;
	nbd_test_deleted++;
}

static inline void
nbd_test_check(int r, struct error *err)
{
	if (r >= 0)
		return;
	fprintf(stderr, "nbd_test: %s\n", error_text(err));
	abort();
}

static inline int
nbd_test_add(const char *id, const char *name, bool writable, struct error **errp)
{
	struct BlockExportOptions opts = {
		.type = BLOCK_EXPORT_TYPE_NBD, .id = (char *)id, .node_name = (char *)"n",
		.has_writable = true, .writable = writable,
		.u.nbd = { .name = (char *)name, .allocation_depth = true },
	};

	return export_add(&opts, errp);
}

/* Coroutine. */
static inline void
nbd_test_start(void *arg)
{
	static const struct export_hooks hooks = { .on_deleted = nbd_test_on_deleted };
	char path[64];
	struct SocketAddress addr = {
		.type = SOCKET_ADDRESS_TYPE_UNIX,
		.u.q_unix = { .path = path, .has_abstract = true, .abstract = true },
	};
	struct NbdServerOptions server = { .addr = &addr };
	struct BlockdevOptions node = {
		.driver = BLOCKDEV_DRIVER_NULL_CO, .node_name = (char *)"n",
		.u.null_co = { .has_size = true, .size = NBD_TEST_SIZE,
			       .has_read_zeroes = true, .read_zeroes = true },
	};
	struct error *err = NULL;

	(void)arg;
	snprintf(path, sizeof(path), "quoin-nbd-test-%d", (int)getpid());
	export_set_hooks(&hooks);
	nbd_test_check(node_add(&node, &open_policy_default, &err), err);
	nbd_test_check(nbd_server_start(NULL, &server, false, &err), err);
	nbd_test_check(nbd_test_add("e", "disk", true, &err), err);
}

/* Coroutine. */
static inline void
nbd_test_stop(void *arg)
{
	(void)arg;
	if (nbd_server_default())
		nbd_server_stop(NULL, NULL);
	node_close_all();
}

#endif
