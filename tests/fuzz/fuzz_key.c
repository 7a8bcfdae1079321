/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target: a key file of any bytes, and its variants. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/key.h"

enum { LINE_END = 2 };		/* bytes, at most */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct key *
read_key(const uint8_t *data, size_t len)
{
	CLEANUP(cleanup_close) int fd = memfd_create("key", MFD_CLOEXEC);
	CLEANUP(error_freep) struct error *err = NULL;
	struct key *k;

	if (fd < 0 || write(fd, data, len) != (ssize_t)len || lseek(fd, 0, SEEK_SET))
		abort();
	if (key_read_fd(fd, &k, &err) == 0)
		return k;
	if (len && len <= KEY_MAX)
		abort();
	return NULL;
}

/* Another end of the line, and the same in front of it. */
static void
check_variant(const struct key *k, unsigned i)
{
	CLEANUP(key_freep) struct key *v = NULL;
	size_t same = k->len < LINE_END ? 0 : k->len - LINE_END;

	if (key_variant(k, i, &v, NULL) < 0)
		abort();
	if (v->len < same || v->len > k->len + LINE_END || memcmp(v->bytes, k->bytes, same))
		abort();
	if (v->len == k->len && !memcmp(v->bytes, k->bytes, k->len))
		abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	CLEANUP(key_freep) struct key *k = read_key(data, len);

	if (!k)
		return 0;
	if (k->len != len || memcmp(k->bytes, data, len))
		abort();
	for (unsigned i = 0; i < KEY_VARIANTS; i++)
		check_variant(k, i);
	return 0;
}
