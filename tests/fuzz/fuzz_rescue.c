/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target: an encrypted image of any kind, opened as quoin rescue opens it:
 * its header, the crypto header that a qcow2 image points to, the search for the
 * key, and what the key decrypts. */
#include <nettle/pbkdf2.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "aio/loop.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/io.h"
#include "block/node.h"
#include "block/open.h"
#include "rescue/image.h"
#include "rescue/key.h"
#include "rescue/keyring.h"
#include "rescue/layer.h"
#include "rescue/options.h"
#include "schema/types.h"

enum { PART = 65536, ITERATIONS_MAX = 1000 };

typedef void derive_fn(void *ctx, nettle_hash_update_func *update, nettle_hash_digest_func *digest,
		       size_t digest_size, unsigned iterations, size_t salt_len,
		       const uint8_t *salt, size_t len, uint8_t *dst);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerInitialize(int *argc, char ***argv);
derive_fn __real_nettle_pbkdf2, __wrap_nettle_pbkdf2;

/* No more iterations than the seeds have, or it would do nothing else. */
void
__wrap_nettle_pbkdf2(void *ctx, nettle_hash_update_func *update, nettle_hash_digest_func *digest,
		     size_t digest_size, unsigned iterations, size_t salt_len, const uint8_t *salt,
		     size_t len, uint8_t *dst)
{
	if (iterations > ITERATIONS_MAX)
		iterations = ITERATIONS_MAX;
	__real_nettle_pbkdf2(ctx, update, digest, digest_size, iterations, salt_len, salt, len, dst);
}

/* A file in memory, and the path that it has. */
static int
make_file(const void *data, size_t len, char path[static 40])
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	if (fd < 0 || write(fd, data, len) != (ssize_t)len || lseek(fd, 0, SEEK_SET))
		abort();
	snprintf(path, 40, "/proc/self/fd/%d", fd);
	return fd;
}

static struct key *
read_key(void)
{
	char path[40];
	CLEANUP(cleanup_close) int fd = make_file("geheim", 6, path);
	struct key *k;

	if (key_read_fd(fd, &k, NULL) < 0)
		abort();
	return k;
}

/* Both ends of the disk. */
static void
read_ends(struct node *n)
{
	CLEANUP(cleanup_free) uint8_t *buf = malloc(PART);
	uint64_t size = node_size(n) / 512 * 512, part = min_u64(size, PART);

	if (!buf)
		abort();
	(void)node_pread(n, 0, buf, part);
	(void)node_pread(n, size - part, buf, part);
}

static void
unlock_and_read(struct layers *layers, struct node *n)
{
	struct keyring ring = { .accept_unverified = true };
	CLEANUP(error_freep) struct error *err = NULL;
	enum keyring_result r = KEYRING_OK;

	if (keyring_add(&ring, read_key(), NULL) < 0)
		abort();
	for (unsigned i = 0; i < layers->count && r == KEYRING_OK; i++)
		r = keyring_unlock(&ring, &layers->layer[i], &err);
	if (r != KEYRING_OK && !*error_text(err))
		abort();
	if (r == KEYRING_OK)
		read_ends(n);
	keyring_done(&ring);
}

static void
open_chain(void *arg)
{
	const struct image_chain *chain = arg;
	CLEANUP(BlockdevOptions_freep) struct BlockdevOptions *o = options_for_chain(chain);
	CLEANUP(error_freep) struct error *err = NULL;
	static struct layers layers;
	struct open_policy policy = { .decryptor = &layer_decryptor, .decryptor_user = &layers,
				      .follow_images = true };
	struct node *n = NULL;

	if (!o)
		abort();
	layer_init(&layers, chain);
	if (node_open(o, &policy, &n, &err) == 0) {
		if (layer_bind(&layers, chain, n, NULL) == 0)
			unlock_and_read(&layers, n);
		node_unref(n);
	} else if (!*error_text(err)) {
		abort();
	}
	layer_done(&layers);
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
	static struct image_chain chain;
	char path[40];
	int fd = make_file(data, len, path);
	int r = image_read(path, &chain.layer[0], NULL);

	if (r == 0) {
		chain.count = 1;
		/* What it is based on would be a file of this machine. */
		if (chain.layer[0]->encryption != CIPHER_NONE && !chain.layer[0]->backing &&
		    !chain.layer[0]->data_file)
			(void)loop_run_co(open_chain, &chain);
		image_chain_done(&chain);
	}
	close(fd);
	return 0;
}
