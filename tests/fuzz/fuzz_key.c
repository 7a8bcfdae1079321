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

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	CLEANUP(key_freep) struct key *k = read_key(data, len), *variant = NULL;

	if (!k)
		return 0;
	/* The exact bytes first; then one newline less or more. */
	if (k->len != len || memcmp(k->bytes, data, len))
		abort();
	if (key_variant(k, &variant, NULL) < 0)
		return 0;
	if (variant->len != len + 1 && variant->len != len - 1)
		abort();
	if (memcmp(variant->bytes, data, variant->len < len ? variant->len : len))
		abort();
	return 0;
}
