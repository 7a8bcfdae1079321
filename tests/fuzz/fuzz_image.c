/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target: the headers that quoin info and rescue read by themselves. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/image.h"
#include "rescue/luks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void
parse_image(const uint8_t *data, size_t len)
{
	CLEANUP(error_freep) struct error *err = NULL;
	CLEANUP(cleanup_close) int fd = memfd_create("image", MFD_CLOEXEC);
	struct image_cipher cipher;
	struct image *im = NULL;
	char path[40];

	if (fd < 0 || write(fd, data, len) != (ssize_t)len)
		abort();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (image_read(path, &im, &err) == 0) {
		image_describe_cipher(im, &cipher);
		(void)image_choose_snapshot(im, "snapshot.id=1,snapshot.name=one", NULL);
	}
	image_free(im);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct luks l;

	parse_image(data, len);
	if (len >= LUKS_HEADER)
		(void)luks_parse(data, len, &l, NULL);
	return 0;
}
