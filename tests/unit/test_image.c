/* SPDX-License-Identifier: Apache-2.0 */
/* What image headers say, sound and unsound, and chains of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/device.h"
#include "rescue/image.h"

static char dir[] = "/tmp/quoin-image-XXXXXX";
static uint8_t head[4096];

static char *
path_of(const char *name)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

static void
put_file(const char *name, const void *data, size_t len)
{
	int fd = open(path_of(name), O_CREAT | O_WRONLY | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, len), (ssize_t)len);
	close(fd);
}

/* A qcow2 header of version 3 with 64k clusters and a size of 1 MiB. */
static void
make_qcow2(uint32_t method, const char *backing, const char *backing_format)
{
	uint8_t *ext = head + 104;

	memset(head, 0, sizeof(head));
	memcpy(head, "QFI\xfb", 4);
	put_be32(head + 4, 3);
	put_be32(head + 20, 16);
	put_be64(head + 24, 1 << 20);
	put_be32(head + 32, method);
	put_be32(head + 96, 4);
	put_be32(head + 100, 104);
	if (backing) {
		put_be64(head + 8, 1024);
		put_be32(head + 16, (uint32_t)strlen(backing));
		memcpy(head + 1024, backing, strlen(backing));
	}
	if (backing_format) {
		put_be32(ext, 0xe2792aca);
		put_be32(ext + 4, (uint32_t)strlen(backing_format));
		memcpy(ext + 8, backing_format, strlen(backing_format));
	}
}

static void
make_qcow(uint32_t method)
{
	memset(head, 0, sizeof(head));
	memcpy(head, "QFI\xfb", 4);
	put_be32(head + 4, 1);
	put_be64(head + 24, 1 << 20);
	head[32] = 12;
	head[33] = 9;
	put_be32(head + 36, method);
}

static struct image *
read_head(void)
{
	struct image *im = NULL;

	put_file("image", head, sizeof(head));
	assert_int_equal(image_read(path_of("image"), &im, NULL), 0);
	return im;
}

static void
refuse_head(const char *text)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct image *im = NULL;

	put_file("image", head, sizeof(head));
	assert_int_equal(image_read(path_of("image"), &im, &err), -1);
	assert_null(im);
	assert_non_null(strstr(error_text(err), text));
}

static void
test_qcow2_aes_and_luks(void **state)
{
	CLEANUP(image_freep) struct image *aes = NULL;
	CLEANUP(image_freep) struct image *luks = NULL;

	make_qcow2(1, "base.img", "raw");
	aes = read_head();
	assert_int_equal(aes->format, IMAGE_QCOW2);
	assert_int_equal(aes->version, 3);
	assert_int_equal(aes->encryption, CIPHER_QCOW2_AES);
	assert_int_equal(aes->virtual_size, 1 << 20);
	assert_int_equal(aes->cluster_size, 65536);
	assert_string_equal(aes->backing, "base.img");
	assert_string_equal(aes->backing_format, "raw");
	make_qcow2(2, NULL, NULL);
	luks = read_head();
	assert_int_equal(luks->encryption, CIPHER_QCOW2_LUKS);
	assert_null(luks->backing);
}

static void
test_qcow_luks_and_raw(void **state)
{
	CLEANUP(image_freep) struct image *qcow = NULL;
	CLEANUP(image_freep) struct image *luks = NULL;
	CLEANUP(image_freep) struct image *raw = NULL;

	make_qcow(1);
	qcow = read_head();
	assert_int_equal(qcow->format, IMAGE_QCOW);
	assert_int_equal(qcow->encryption, CIPHER_QCOW_AES);
	assert_int_equal(qcow->cluster_size, 4096);

	memset(head, 0, sizeof(head));
	memcpy(head, "LUKS\xba\xbe\0\1aes", 11);
	memcpy(head + 40, "xts-plain64", 11);
	memcpy(head + 72, "sha256", 6);
	luks = read_head();
	assert_int_equal(luks->encryption, CIPHER_LUKS);
	assert_string_equal(luks->cipher, "aes-xts-plain64, sha256");

	memset(head, 'x', sizeof(head));
	raw = read_head();
	assert_int_equal(raw->format, IMAGE_RAW);
	assert_int_equal(raw->encryption, CIPHER_NONE);
	assert_int_equal(raw->virtual_size, sizeof(head));
}

static void
test_what_cannot_be_right_is_refused(void **state)
{
	make_qcow2(3, NULL, NULL);
	refuse_head("encryption method");
	make_qcow2(0, NULL, NULL);
	put_be32(head + 20, 8);
	refuse_head("cluster size");
	put_be32(head + 20, 22);
	refuse_head("cluster size");
	make_qcow2(0, NULL, NULL);
	put_be32(head + 4, 4);
	refuse_head("version");
	make_qcow2(0, NULL, NULL);
	put_be32(head + 100, 103);
	refuse_head("header's length");
	put_be32(head + 100, 0xffffffff);
	refuse_head("header's length");
	make_qcow2(0, "x", NULL);
	put_be32(head + 16, 1024);
	refuse_head("name is too long");
	put_be32(head + 16, 0xffffffff);
	refuse_head("name is too long");
	make_qcow2(0, "x", NULL);
	put_be64(head + 8, UINT64_MAX);
	refuse_head("beyond the end");
	make_qcow2(0, "x", "raw");
	put_be32(head + 108, 0xfffffff8);
	refuse_head("extension is too long");
	make_qcow(2);
	refuse_head("encryption method");
	make_qcow(0);
	head[32] = 17;
	refuse_head("cluster size");
}

static void
test_every_short_file_is_raw_or_an_error(void **state)
{
	make_qcow2(1, "base.img", "raw");
	for (size_t len = 0; len < 200; len++) {
		CLEANUP(image_freep) struct image *im = NULL;

		put_file("short", head, len);
		if (image_read(path_of("short"), &im, NULL) == 0)
			assert_true(im->format == IMAGE_RAW || len > 4);
	}
}

static void
test_a_chain_believes_recorded_formats(void **state)
{
	CLEANUP(error_freep) struct error *unknown = NULL;
	CLEANUP(error_freep) struct error *other = NULL;
	struct image_chain chain = { 0 };

	make_qcow2(0, NULL, NULL);
	put_file("inner", head, sizeof(head));
	make_qcow2(1, "inner", "raw");
	put_file("outer", head, sizeof(head));
	assert_int_equal(image_chain_read(path_of("outer"), NULL, &chain, NULL), 0);
	assert_int_equal(chain.count, 2);
	/* It looks like qcow2, but a guest may have written that. */
	assert_int_equal(chain.layer[1]->format, IMAGE_RAW);
	image_chain_done(&chain);

	make_qcow2(1, "inner", NULL);
	put_file("outer", head, sizeof(head));
	assert_int_equal(image_chain_read(path_of("outer"), NULL, &chain, NULL), 0);
	assert_int_equal(chain.layer[1]->format, IMAGE_QCOW2);
	image_chain_done(&chain);

	make_qcow2(1, "inner", "vmdk");
	put_file("outer", head, sizeof(head));
	assert_int_equal(image_chain_read(path_of("outer"), NULL, &chain, &unknown), -1);
	assert_non_null(strstr(error_text(unknown), "is said to be a vmdk image"));

	make_qcow2(1, "inner", "luks");
	put_file("outer", head, sizeof(head));
	assert_int_equal(image_chain_read(path_of("outer"), NULL, &chain, &other), -1);
	assert_non_null(strstr(error_text(other), "looks like qcow2"));
}

static void
test_loops_and_missing_layers_are_errors(void **state)
{
	CLEANUP(error_freep) struct error *loop = NULL;
	CLEANUP(error_freep) struct error *missing = NULL;
	struct image_chain chain;

	make_qcow2(1, "b", "qcow2");
	put_file("a", head, sizeof(head));
	make_qcow2(1, "./a", "qcow2");
	put_file("b", head, sizeof(head));
	assert_int_equal(image_chain_read(path_of("a"), NULL, &chain, &loop), -1);
	assert_non_null(strstr(error_text(loop), "based on itself"));

	/* A name is a name, whatever it looks like. */
	make_qcow2(1, "json:{\"driver\":\"null-co\"}", "qcow2");
	put_file("c", head, sizeof(head));
	assert_int_equal(image_chain_read(path_of("c"), NULL, &chain, &missing), -1);
	assert_non_null(strstr(error_text(missing), "No such file"));
	assert_non_null(strstr(error_text(missing), "/c: "));
	assert_non_null(strstr(error_text(missing), "nothing else is opened"));
}

/* An image of version 3 that keeps its data in another file. */
static void
make_external(const char *data_file)
{
	uint8_t *ext = head + 104;

	make_qcow2(1, NULL, NULL);
	put_be64(head + 72, 1 << 2);
	put_be32(ext, 0x44415441);
	put_be32(ext + 4, (uint32_t)strlen(data_file));
	memcpy(ext + 8, data_file, strlen(data_file));
}

static void
test_a_data_file_is_raw_and_beside_the_image(void **state)
{
	struct image_chain chain = { 0 };

	make_qcow2(3, NULL, NULL);	/* no sound header, and none at all for its image */
	put_file("data", head, sizeof(head));
	make_external("data");
	put_file("image", head, sizeof(head));
	assert_int_equal(image_chain_read(path_of("image"), NULL, &chain, NULL), 0);
	assert_int_equal(chain.count, 1);
	assert_string_equal(chain.layer[0]->data->filename, path_of("data"));
	assert_int_equal(chain.layer[0]->data->file_size, sizeof(head));
	assert_ptr_equal(image_chain_file(&chain, 1), chain.layer[0]->data);
	assert_null(image_chain_file(&chain, 2));
	image_chain_done(&chain);
}

static void
test_a_data_file_of_another_folder_is_ambiguous(void **state)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct image_chain chain = { 0 };
	char old[4096], other[64];

	snprintf(other, sizeof(other), "%s/other", dir);
	make_external("twice");
	put_file("image", head, sizeof(head));
	put_file("twice", head, sizeof(head));
	assert_int_equal(mkdir(other, 0700), 0);
	put_file("other/twice", head, sizeof(head));
	assert_non_null(getcwd(old, sizeof(old)));
	assert_int_equal(chdir(other), 0);
	assert_int_equal(image_chain_read(path_of("image"), NULL, &chain, &err), -1);
	assert_non_null(strstr(error_text(err), "go to the folder of the right one"));
	assert_int_equal(chdir(dir), 0);
	assert_int_equal(image_chain_read(path_of("image"), NULL, &chain, NULL), 0);
	image_chain_done(&chain);
	assert_int_equal(chdir(old), 0);
}

static void
test_links_to_a_file_are_seen_through(void **state)
{
	static const char *const names[] = { "image", "soft", "hard", "data-soft" };
	struct image_chain chain = { 0 };
	char fd_path[128];
	int fd;

	make_external("data");
	put_file("data", head, sizeof(head));
	put_file("image", head, sizeof(head));
	assert_int_equal(symlink("image", path_of("soft")), 0);
	assert_int_equal(symlink("data", path_of("data-soft")), 0);
	fd = open(path_of("image"), O_RDONLY);
	snprintf(fd_path, sizeof(fd_path), "%s", path_of("image"));
	assert_int_equal(link(fd_path, path_of("hard")), 0);
	assert_int_equal(image_chain_read(path_of("image"), NULL, &chain, NULL), 0);
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		assert_non_null(device_find_source(&chain, path_of(names[i])));
	snprintf(fd_path, sizeof(fd_path), "/proc/self/fd/%d", fd);
	assert_ptr_equal(device_find_source(&chain, fd_path), chain.layer[0]);
	assert_null(device_find_source(&chain, path_of("other")));
	assert_null(device_find_source(&chain, path_of("nothing")));
	close(fd);
	image_chain_done(&chain);
}

static void
test_what_is_no_file_is_refused(void **state)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct image *im = NULL;

	assert_int_equal(mkfifo(path_of("fifo"), 0600), 0);
	assert_int_equal(image_read(path_of("fifo"), &im, &err), -1);
	assert_non_null(strstr(error_text(err), "neither a file nor a block device"));
}

static int
set_up(void **state)
{
	return mkdtemp(dir) ? 0 : -1;
}

static int
tear_down(void **state)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -r %s", dir);
	return system(command);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_qcow2_aes_and_luks),
		cmocka_unit_test(test_qcow_luks_and_raw),
		cmocka_unit_test(test_what_cannot_be_right_is_refused),
		cmocka_unit_test(test_every_short_file_is_raw_or_an_error),
		cmocka_unit_test(test_a_chain_believes_recorded_formats),
		cmocka_unit_test(test_loops_and_missing_layers_are_errors),
		cmocka_unit_test(test_a_data_file_is_raw_and_beside_the_image),
		cmocka_unit_test(test_a_data_file_of_another_folder_is_ambiguous),
		cmocka_unit_test(test_links_to_a_file_are_seen_through),
		cmocka_unit_test(test_what_is_no_file_is_refused),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
