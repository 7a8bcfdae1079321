/* SPDX-License-Identifier: Apache-2.0 */
/* Images in real files, with qemu-img as the other side: what it writes is read
 * here, what is written here it checks and reads. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/node.h"
#include "block/open.h"
#include "block/qcow2/check.h"
#include "block/qcow2/qcow2.h"
#include "schema/types.h"
#include "tests/unit/aio_test.h"

enum { SIZE = 4 << 20 };

static char dir[64];

/* Run a shell command in the folder of the images; its exit status. */
__attribute__((format(printf, 1, 2))) static int
shell(const char *fmt, ...)
{
	char command[1024];
	va_list ap;
	int n, status;

	n = snprintf(command, sizeof(command), "cd %s && (", dir);
	va_start(ap, fmt);
	n += vsnprintf(command + n, sizeof(command) - (size_t)n, fmt, ap);
	va_end(ap);
	snprintf(command + n, sizeof(command) - (size_t)n, ") >/dev/null 2>out.txt");
	status = system(command);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static const char *
path_of(const char *name)
{
	static char path[2][128];
	static int turn;

	turn ^= 1;
	snprintf(path[turn], sizeof(path[turn]), "%s/%s", dir, name);
	return path[turn];
}

/* ---- opening ---- */

struct opening {
	const char *name;
	bool read_only, no_backing;
	enum BlockdevDriver driver;	/* 0: qcow2 */
	const char *backing;		/* a raw file */
	struct node *node;
	char *error;
};

static void
open_image(struct opening *o)
{
	struct BlockdevRef file = { .type = BLOCKDEV_REF_DEFINITION };
	struct BlockdevRefOrNull none = { .type = BLOCKDEV_REF_OR_NULL_NULL };
	struct BlockdevRefOrNull backing = { .type = BLOCKDEV_REF_OR_NULL_DEFINITION };
	struct BlockdevRef base = { .type = BLOCKDEV_REF_DEFINITION };
	struct BlockdevOptions opts = { .driver = BLOCKDEV_DRIVER_QCOW2, .node_name = (char *)"n" };
	struct error *err = NULL;

	file.u.definition.driver = BLOCKDEV_DRIVER_FILE;
	file.u.definition.u.file.filename = (char *)path_of(o->name);
	base.u.definition.driver = BLOCKDEV_DRIVER_FILE;
	base.u.definition.u.file.filename = (char *)(o->backing ? path_of(o->backing) : "");
	backing.u.definition.driver = BLOCKDEV_DRIVER_RAW;
	backing.u.definition.u.raw.file = &base;
	if (o->driver)
		opts.driver = o->driver;
	/* qcow's options begin alike. */
	opts.u.qcow2.file = &file;
	opts.u.qcow2.backing = o->backing ? &backing : o->no_backing ? &none : NULL;
	opts.has_read_only = true;
	opts.read_only = o->read_only;
	o->node = NULL;
	o->error = NULL;
	if (node_open(&opts, &open_policy_default, &o->node, &err)) {
		o->error = strdup(error_text(err));
		error_free(err);
	}
}

static struct node *
must_open(const char *name, bool read_only)
{
	struct opening o = { .name = name, .read_only = read_only };

	open_image(&o);
	if (!o.node)
		fail_msg("%s: %s", name, o.error);
	return o.node;
}

static void
must_refuse(const char *name, bool read_only, const char *text)
{
	struct opening o = { .name = name, .read_only = read_only };

	open_image(&o);
	assert_null(o.node);
	if (!strstr(o.error, text))
		fail_msg("'%s' is not in '%s'", text, o.error);
	free(o.error);
}

/* ---- content ---- */

static uint8_t *
content(const char *raw, size_t size)
{
	uint8_t *buf = calloc(1, size);
	FILE *f = fopen(path_of(raw), "r");

	assert_non_null(f);
	(void)!fread(buf, 1, size, f);
	fclose(f);
	return buf;
}

static void
must_hold(struct node *n, const char *raw)
{
	size_t size = node_size(n);
	uint8_t *want = content(raw, size), *is = malloc(size);

	assert_int_equal(node_pread(n, 0, is, size), 0);
	assert_memory_equal(is, want, size);
	free(want);
	free(is);
}

/* Something that packs well, with holes and noise in it. */
static void
make_raw(const char *name, unsigned seed)
{
	uint8_t *buf = calloc(1, SIZE);
	struct rng r = { seed };
	FILE *f = fopen(path_of(name), "w");

	for (size_t i = 0; i < SIZE; i += 4096) {
		unsigned kind = rng_below(&r, 4);

		for (size_t k = 0; k < 4096 && kind; k++)
			buf[i + k] = kind == 1 ? (uint8_t)rng_next(&r) : (uint8_t)("some text "[k % 10]);
	}
	assert_int_equal(fwrite(buf, 1, SIZE, f), SIZE);
	fclose(f);
	free(buf);
}

static int
setup(void **state)
{
	strcpy(dir, "/tmp/quoin-test-XXXXXX");
	return mkdtemp(dir) ? loops_setup(state) : -1;
}

static int
teardown(void **state)
{
	shell("rm -rf %s", dir);
	return loops_teardown(state);
}

/* ---- the tests; each runs in a coroutine ---- */

static void
compressed(void *arg)
{
	static const char *const kinds[] = {
		"cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=2M",
		"compression_type=zstd", "compression_type=zstd,cluster_size=1M", "compat=0.10",
	};

	(void)arg;
	make_raw("a.raw", 1);
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		struct node *n;
		uint8_t buf[10000];

		assert_int_equal(shell("qemu-img convert -c -O qcow2 -o %s a.raw c.qcow2", kinds[i]), 0);
		n = must_open("c.qcow2", true);
		must_hold(n, "a.raw");
		node_unref(n);
		/* Over compressed clusters, into their midst. */
		n = must_open("c.qcow2", false);
		memset(buf, 0x5a, sizeof(buf));
		assert_int_equal(node_pwrite(n, 100001, buf, sizeof(buf)), 0);
		assert_int_equal(node_zero(n, 1 << 20, 200000, 0), 0);
		assert_int_equal(node_discard(n, 2 << 20, 200000), 0);
		node_unref(n);
		assert_int_equal(shell("qemu-img check c.qcow2"), 0);
		assert_int_equal(shell("qemu-img convert -O raw c.qcow2 b.raw"), 0);
		n = must_open("c.qcow2", true);
		must_hold(n, "b.raw");
		node_unref(n);
	}
}

static void
snapshots(void *arg)
{
	struct node *n;
	uint8_t *buf = malloc(SIZE);

	(void)arg;
	memset(buf, 0x77, SIZE);
	make_raw("a.raw", 2);
	for (int bits = 9; bits <= 16; bits += 7) {
		assert_int_equal(shell("qemu-img convert -O qcow2 -o cluster_size=%d a.raw s.qcow2 && "
				       "qemu-img snapshot -c one s.qcow2", 1 << bits), 0);
		n = must_open("s.qcow2", false);
		assert_int_equal(node_pwrite(n, 12345, buf, 1000000), 0);
		assert_int_equal(node_zero(n, 2 << 20, 100000, IO_MAY_UNMAP), 0);
		assert_int_equal(node_discard(n, 3 << 20, 500000), 0);
		assert_int_equal(node_flush(n), 0);
		assert_int_equal(node_pwrite(n, 77777, buf, 1234), 0);
		node_unref(n);
		assert_int_equal(shell("qemu-img check s.qcow2"), 0);
		assert_int_equal(shell("qemu-img snapshot -a one s.qcow2 && qemu-img check s.qcow2 && "
				       "qemu-img compare -f qcow2 -F raw s.qcow2 a.raw"), 0);
		assert_int_equal(shell("qemu-img snapshot -d one s.qcow2 && qemu-img check s.qcow2"), 0);
	}
	free(buf);
}

static void
dirty(void *arg)
{
	struct node *n;

	(void)arg;
	/* A program that dies with its counts unwritten. */
	assert_int_not_equal(shell("qemu-img create -f qcow2 -o lazy_refcounts=on d.qcow2 4M && "
				   "qemu-io -c 'write -P 3 0 1M' -c 'flush' -c 'abort' d.qcow2"), 0);
	assert_int_equal(shell("qemu-img info d.qcow2 && ! qemu-img check d.qcow2"), 0);
	n = must_open("d.qcow2", true);
	assert_true(((struct qcow2 *)n->state)->header.incompat & QCOW2_INCOMPAT_DIRTY);
	node_unref(n);
	n = must_open("d.qcow2", false);
	assert_false(((struct qcow2 *)n->state)->header.incompat & QCOW2_INCOMPAT_DIRTY);
	node_unref(n);
	assert_int_equal(shell("qemu-img check d.qcow2 && qemu-io -c 'read -P 3 0 1M' d.qcow2"), 0);
}

static void
poke(const char *name, long off, const void *bytes, size_t len)
{
	int fd = open(path_of(name), O_WRONLY);

	assert_int_equal(pwrite(fd, bytes, len, off), (ssize_t)len);
	close(fd);
}

static void
feature_bits(void *arg)
{
	uint8_t bits[8] = { 0 };

	(void)arg;
	assert_int_equal(shell("qemu-img create -f qcow2 f.qcow2 4M"), 0);
	put_be64(bits, QCOW2_INCOMPAT_CORRUPT);
	poke("f.qcow2", QCOW2_OFF_INCOMPAT, bits, 8);
	must_refuse("f.qcow2", false, "qcow2: Image is corrupt; cannot be opened read/write");
	node_unref(must_open("f.qcow2", true));
	put_be64(bits, UINT64_C(1) << 40);
	poke("f.qcow2", QCOW2_OFF_INCOMPAT, bits, 8);
	must_refuse("f.qcow2", true,
		    "Unsupported qcow2 feature(s): Unknown incompatible feature: 10000000000");
	assert_int_equal(shell("qemu-img create -f qcow2 -o data_file=x.raw g.qcow2 4M"), 0);
	must_refuse("g.qcow2", true, "'data-file' is required for this image");
	assert_int_equal(shell("qemu-img create -f qcow2 -o extended_l2=on h.qcow2 4M"), 0);
	poke("h.qcow2", 20, "\0\0\0\15", 4);
	must_refuse("h.qcow2", true, "Unsupported subcluster size: 256");
	assert_int_equal(shell("echo nothing of the kind >i.qcow2"), 0);
	must_refuse("i.qcow2", true, "Image is not in qcow2 format");
}

static void
bitmaps(void *arg)
{
	struct node *n;

	(void)arg;
	assert_int_equal(shell("qemu-img create -f qcow2 b.qcow2 4M && "
			       "qemu-img bitmap --add --enable b.qcow2 dirt && cp b.qcow2 b0.qcow2"), 0);
	n = must_open("b.qcow2", false);
	assert_int_equal(node_flush(n), 0);
	node_unref(n);
	assert_int_equal(shell("cmp b.qcow2 b0.qcow2 && qemu-img info b.qcow2 | grep dirt"), 0);
	n = must_open("b.qcow2", false);
	assert_int_equal(node_pwrite(n, 0, "x", 1), 0);
	node_unref(n);
	/* Stored anew. */
	assert_int_equal(shell("qemu-img check b.qcow2 && qemu-img info b.qcow2 | grep dirt && "
			       "qemu-img info b.qcow2 | grep auto && "
			       "! qemu-img info b.qcow2 | grep in-use"), 0);
}

static void
sizes(void *arg)
{
	struct error *err = NULL;
	struct node *n;

	(void)arg;
	make_raw("a.raw", 3);
	for (int bits = 9; bits <= 16; bits += 7) {
		assert_int_equal(shell("cp a.raw r.raw && qemu-img convert -O qcow2 -o cluster_size=%d "
				       "a.raw r.qcow2", 1 << bits), 0);
		n = must_open("r.qcow2", false);
		assert_int_equal(node_truncate(n, UINT64_C(20) << 20, true, PREALLOC_OFF, NULL), 0);
		assert_int_equal(node_pwrite(n, (UINT64_C(20) << 20) - 5, "12345", 5), 0);
		node_unref(n);
		assert_int_equal(shell("truncate -s 20M r.raw && printf 12345 | dd of=r.raw bs=1 "
				       "seek=20971515 conv=notrunc && qemu-img check r.qcow2 && "
				       "qemu-img compare r.qcow2 r.raw -f qcow2 -F raw"), 0);
		n = must_open("r.qcow2", false);
		assert_int_equal(node_truncate(n, 1000448, true, PREALLOC_OFF, NULL), 0);
		assert_int_equal(node_truncate(n, SIZE, true, PREALLOC_OFF, NULL), 0);
		assert_int_equal(node_truncate(n, 1, true, PREALLOC_OFF, &err), -1);
		assert_string_equal(error_text(err), "The new size must be a multiple of 512");
		error_free(err);
		err = NULL;
		node_unref(n);
		assert_int_equal(shell("truncate -s 1000448 r.raw && truncate -s %d r.raw && "
				       "qemu-img check r.qcow2 && "
				       "qemu-img compare r.qcow2 r.raw -f qcow2 -F raw", SIZE), 0);
	}
}

static void
backing_name(void *arg)
{
	char longest[1024];
	struct node *n;

	(void)arg;
	make_raw("a.raw", 4);
	assert_int_equal(shell("cp a.raw base2.raw && "
			       "qemu-img create -f qcow2 -b a.raw -F raw o.qcow2 5M"), 0);
	n = must_open("o.qcow2", false);
	must_hold(n, "a.raw");
	assert_int_equal(n->driver->change_backing(n, "base2.raw", "raw", NULL), 0);
	node_unref(n);
	assert_int_equal(shell("rm a.raw && qemu-img check o.qcow2 && "
			       "qemu-img info o.qcow2 | grep 'backing file: base2.raw'"), 0);
	n = must_open("o.qcow2", false);
	must_hold(n, "base2.raw");
	memset(longest, 'x', 1023);
	longest[1023] = '\0';
	assert_int_equal(n->driver->change_backing(n, longest, "raw", NULL), 0);
	assert_int_equal(n->driver->change_backing(n, "base2.raw", "raw", NULL), 0);
	assert_int_equal(n->driver->change_backing(n, longest, "raw", NULL), 0);
	node_unref(n);
	assert_int_equal(shell("qemu-img info -U o.qcow2 | grep 'backing file: %s'", "xxxxxxx"), 0);
	n = NULL;
	struct opening o = { .name = "o.qcow2", .no_backing = true };
	open_image(&o);
	assert_non_null(o.node);
	assert_int_equal(o.node->driver->change_backing(o.node, NULL, NULL, NULL), 0);
	node_unref(o.node);
	assert_int_equal(shell("qemu-img check o.qcow2 && ! qemu-img info o.qcow2 | "
			       "grep 'backing file'"), 0);
}

static void
encrypted(void *arg)
{
	(void)arg;
	assert_int_equal(shell("qemu-img create -f qcow2 --object secret,id=s,data=abc -o "
			       "encrypt.format=aes,encrypt.key-secret=s e.qcow2 4M && "
			       "for try in $(seq 100); do qemu-img create -f qcow2 --object "
			       "secret,id=s,data=abc -o encrypt.format=luks,encrypt.key-secret=s,"
			       "encrypt.iter-time=500 l.qcow2 4M && break; done && "
			       "qemu-img create -u -f qcow2 -b e.qcow2 -F qcow2 p.qcow2 4M"), 0);
	must_refuse("e.qcow2", false, "e.qcow2' is encrypted (qcow2 AES-CBC)");
	must_refuse("e.qcow2", true, "quoin rescue");
	must_refuse("l.qcow2", true, "l.qcow2' is encrypted (qcow2 LUKS)");
	must_refuse("p.qcow2", true, "e.qcow2' (backing file of ");
}

static void
version_1(void *arg)
{
	struct opening o = { .name = "v1.qcow", .read_only = true, .driver = BLOCKDEV_DRIVER_QCOW };

	(void)arg;
	make_raw("a.raw", 5);
	for (int packed = 0; packed < 2; packed++) {
		/* With -c it writes the image, and then fails without a word. */
		assert_int_equal(shell("rm -f v1.qcow; qemu-img convert -O qcow %s a.raw v1.qcow; "
				       "qemu-img compare -f qcow -F raw v1.qcow a.raw",
				       packed ? "-c" : ""), 0);
		open_image(&o);
		assert_non_null(o.node);
		must_hold(o.node, "a.raw");
		node_unref(o.node);
	}
	/* Over a backing file that is shorter. */
	assert_int_equal(shell("qemu-img create -f qcow -b a.raw -F raw v1.qcow 5M && "
			       "qemu-io -f qcow -c 'write -P 9 1000k 100k' v1.qcow && "
			       "qemu-img convert -f qcow -O raw v1.qcow b.raw"), 0);
	o.backing = "a.raw";
	open_image(&o);
	assert_non_null(o.node);
	must_hold(o.node, "b.raw");
	node_unref(o.node);
	o.backing = NULL;
	o.no_backing = true;
	assert_int_equal(shell("qemu-img create -f qcow --object secret,id=s,data=abc -o "
			       "encrypt.format=aes,encrypt.key-secret=s v1.qcow 4M"), 0);
	for (int i = 0; i < 2; i++) {
		open_image(&o);
		assert_null(o.node);
		assert_non_null(strstr(o.error, "v1.qcow' is encrypted (qcow AES-CBC)"));
		free(o.error);
		o.read_only = false;
	}
}

/* ---- creating ---- */

static void
must_create(const char *name, struct BlockdevCreateOptionsQcow2 *q, const char *error)
{
	struct BlockdevCreateOptions opts = { .driver = BLOCKDEV_DRIVER_QCOW2 };
	struct BlockdevRef file = { .type = BLOCKDEV_REF_DEFINITION };
	struct error *err = NULL;
	int r;

	assert_int_equal(shell("rm -f %s && touch %s", name, name), 0);
	file.u.definition.driver = BLOCKDEV_DRIVER_FILE;
	file.u.definition.u.file.filename = (char *)path_of(name);
	q->file = &file;
	opts.u.qcow2 = *q;
	r = qcow2_create(&opts, &err);
	if (error) {
		assert_int_equal(r, -1);
		assert_string_equal(error_text(err), error);
	} else if (r) {
		fail_msg("%s", error_text(err));
	}
	error_free(err);
}

static void
creating(void *arg)
{
	struct BlockdevCreateOptionsQcow2 q = { .size = 64 << 20 };

	(void)arg;
	must_create("c.qcow2", &q, NULL);
	assert_int_equal(shell("qemu-img check c.qcow2"), 0);
	q.has_cluster_size = q.has_refcount_bits = true;
	for (unsigned bits = 9; bits <= 21; bits++) {
		q.cluster_size = UINT64_C(1) << bits;
		q.refcount_bits = INT64_C(1) << bits % 7;
		must_create("c.qcow2", &q, NULL);
		assert_int_equal(shell("qemu-img check c.qcow2 && qemu-io -c 'write -P 5 60M 1M' c.qcow2 "
				       "&& qemu-img check c.qcow2"), 0);
	}
	q.has_preallocation = true;
	q.cluster_size = 4096;
	for (int mode = PREALLOC_MODE_METADATA; mode <= PREALLOC_MODE_FULL; mode++) {
		q.preallocation = (enum PreallocMode)mode;
		must_create("c.qcow2", &q, NULL);
		assert_int_equal(shell("qemu-img check c.qcow2 | grep -q 100.00 && "
				       "qemu-io -c 'read -P 0 0 64M' c.qcow2"), 0);
	}
	q.backing_file = (char *)"b.raw";
	must_create("c.qcow2", &q, "Backing file and preallocation can only be used at the same time "
				   "if extended_l2 is on");
	q.has_preallocation = false;
	q.has_backing_fmt = true;
	q.backing_fmt = BLOCKDEV_DRIVER_RAW;
	must_create("c.qcow2", &q, NULL);
	assert_int_equal(shell("truncate -s 1M b.raw && qemu-img info c.qcow2 | "
			       "grep 'backing file: b.raw'"), 0);
	q.cluster_size = 1000;
	must_create("c.qcow2", &q, "Cluster size must be a power of two between 512 and 2048k");
	q.has_cluster_size = false;
	q.refcount_bits = 24;
	must_create("c.qcow2", &q, "Refcount width must be a power of two and may not exceed 64 bits");
	q.refcount_bits = 8;
	q.has_version = true;
	q.version = BLOCKDEV_QCOW2_VERSION_V2;
	must_create("c.qcow2", &q, "Different refcount widths than 16 bits require compatibility level "
				   "1.1 or above (use version=v3 or greater)");
	q.has_refcount_bits = false;
	must_create("c.qcow2", &q, NULL);
	assert_int_equal(shell("qemu-img info c.qcow2 | grep 'compat: 0.10'"), 0);
	q.size = 1000;
	must_create("c.qcow2", &q, "Image size must be a multiple of 512 bytes");
	assert_int_equal(shell("test ! -s c.qcow2"), 0);
}

#define IMAGE_TEST(fn, name)                                                       \
	static void name(void **state)                                             \
	{                                                                          \
		(void)state;                                                       \
		if (system("command -v qemu-img qemu-io >/dev/null"))              \
			skip();                                                    \
		run(fn, NULL);                                                     \
	}

IMAGE_TEST(compressed, compressed_clusters_are_read_and_written_over)
IMAGE_TEST(snapshots, what_a_snapshot_refers_to_stays_as_it_was)
IMAGE_TEST(dirty, a_dirty_image_is_repaired_when_opened_for_writing)
IMAGE_TEST(feature_bits, unknown_features_are_refused_by_name)
IMAGE_TEST(bitmaps, bitmaps_stay_as_they_are_until_the_first_write)
IMAGE_TEST(sizes, an_image_grows_and_shrinks)
IMAGE_TEST(backing_name, the_backing_files_name_changes)
IMAGE_TEST(encrypted, encrypted_images_are_refused_at_any_depth)
IMAGE_TEST(version_1, qcow_images_are_read)
IMAGE_TEST(creating, images_are_created_as_asked)

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(compressed_clusters_are_read_and_written_over),
		T(what_a_snapshot_refers_to_stays_as_it_was),
		T(a_dirty_image_is_repaired_when_opened_for_writing),
		T(unknown_features_are_refused_by_name),
		T(bitmaps_stay_as_they_are_until_the_first_write),
		T(an_image_grows_and_shrinks),
		T(the_backing_files_name_changes),
		T(encrypted_images_are_refused_at_any_depth),
		T(qcow_images_are_read),
		T(images_are_created_as_asked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
