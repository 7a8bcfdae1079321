/* SPDX-License-Identifier: Apache-2.0 */
/* Power cuts during a commit of a middle layer.
 *
 * Such a commit changes nothing that the guest can see.  So whatever moment the
 * power goes, and whichever of the writes that were not flushed yet get lost, the
 * chain that the active image's header names has to show what it showed before. */
#include "tests/sim/powercut.h"
#include "tests/unit/job_test.h"

#include "job/commit.h"

enum { SIZE = 2 << 20, LAYERS = 3, STATES_MAX = 150 };

static const char *const files[LAYERS] = { "f0", "f1", "f2" };
static const char *const names[LAYERS] = { "base", "mid", "active" };

struct chain {
	struct memdisk *disk[LAYERS];
	struct node *file[LAYERS], *node[LAYERS];
};

static uint8_t model[SIZE];

static struct BlockdevRef
ref(const char *name)
{
	return (struct BlockdevRef){ .type = BLOCKDEV_REF_REFERENCE,
				     .u.reference = (char *)name };
}

static void
make_image(unsigned i)
{
	struct BlockdevRef file = ref(files[i]);
	struct BlockdevCreateOptions o = {
		.driver = BLOCKDEV_DRIVER_QCOW2,
		.u.qcow2 = { .file = &file, .size = SIZE, .has_backing_fmt = i > 0,
			     .backing_fmt = BLOCKDEV_DRIVER_QCOW2,
			     .backing_file = i ? (char *)names[i - 1] : NULL },
	};

	assert_int_equal(driver_find("qcow2")->create(&o, NULL), 0);
}

/* under: NULL is none. */
static struct node *
open_image(unsigned i, const char *under, bool read_only)
{
	struct BlockdevRef file = ref(files[i]);
	struct BlockdevRefOrNull backing = {
		.type = under ? BLOCKDEV_REF_OR_NULL_REFERENCE : BLOCKDEV_REF_OR_NULL_NULL,
		.u.reference = (char *)under,
	};
	struct BlockdevOptions o = {
		.driver = BLOCKDEV_DRIVER_QCOW2, .node_name = (char *)names[i],
		.has_read_only = true, .read_only = read_only,
		.u.qcow2 = { .file = &file, .backing = &backing },
	};
	struct node *n = NULL;

	MUST(node_open(&o, NULL, &n, &err));
	return n;
}

static void
close_all(struct chain *c)
{
	for (unsigned i = LAYERS; i-- > 0;) {
		if (c->node[i])
			node_unref(c->node[i]);
		c->node[i] = NULL;
	}
}

static void
close_files(struct chain *c)
{
	for (unsigned i = 0; i < LAYERS; i++) {
		node_unref(c->file[i]);
		memdisk_free(c->disk[i]);
	}
}

static void
open_all(struct chain *c, unsigned count, bool read_only)
{
	for (unsigned i = 0; i < count; i++)
		c->node[i] = open_image(i, i ? names[i - 1] : NULL,
					read_only || i < count - 1);
}

static void
fill(struct node *n, unsigned seed)
{
	struct root *root = must_root(n, PERM_WRITE, PERM_ALL);
	struct rng r = { seed };
	uint8_t buf[40000];

	for (int k = 0; k < 25; k++) {
		uint64_t len = 1 + rng_below(&r, sizeof(buf));
		uint64_t off = rng_below(&r, (unsigned)(SIZE - len));
		struct iov v = IOV_BUF(buf, len);

		memset(buf, 1 + (int)rng_below(&r, 255), len);
		assert_int_equal(io_write(root, off, &v, 0), 0);
		memcpy(model + off, buf, len);
	}
	assert_int_equal(io_flush(root), 0);
	root_free(root);
}

static void
make_chain(struct chain *c)
{
	for (unsigned i = 0; i < LAYERS; i++) {
		c->disk[i] = memdisk_new(0);
		c->disk[i]->no_log = true;
		c->disk[i]->yields = 1;
		c->file[i] = must_mem(c->disk[i], files[i]);
		make_image(i);
		open_all(c, i + 1, false);
		fill(c->node[i], i + 77);
		close_all(c);
	}
}

/* ---- a state that a power cut leaves ---- */

/* Copies of all disks as they are after entry seq, with nodes over them. */
static void
cut_power(const struct chain *c, uint64_t seq, struct cut *cut, struct chain *ret)
{
	for (unsigned i = 0; i < LAYERS; i++) {
		const struct memdisk *m = c->disk[i];
		size_t count = 0;
		uint64_t size;
		uint8_t *image;

		while (count < m->log_count && m->log[count].seq <= seq)
			count++;
		image = memdisk_image(m, count, cut_keeps, cut, &size);
		assert_non_null(image);
		ret->disk[i] = memdisk_new(size);
		ret->disk[i]->no_log = true;
		memcpy(ret->disk[i]->content, image, size);
		free(image);
		ret->file[i] = must_mem(ret->disk[i], files[i]);
	}
}

static bool
header_names(struct node *n, const char *name)
{
	struct ImageInfo *i = calloc(1, sizeof(*i));
	bool is;

	MUST(n->driver->info(n, i, &err));
	is = i->backing_filename && !strcmp(i->backing_filename, name);
	ImageInfo_free(i);
	return is;
}

/* Open what the active image's header names, and compare. */
static void
judge(struct chain *c, uint64_t seq, unsigned how, unsigned *over_base)
{
	uint8_t *buf = malloc(SIZE);
	bool skips_mid;

	c->node[2] = open_image(2, NULL, true);
	skips_mid = header_names(c->node[2], "base");
	assert_true(skips_mid || header_names(c->node[2], "mid"));
	close_all(c);
	*over_base += skips_mid;
	if (skips_mid) {
		c->node[0] = open_image(0, NULL, true);
		c->node[2] = open_image(2, "base", true);
	} else {
		open_all(c, LAYERS, true);
	}
	assert_int_equal(node_pread(c->node[2], 0, buf, SIZE), 0);
	for (uint64_t i = 0; i < SIZE; i++)
		if (buf[i] != model[i])
			fail_msg("cut after %llu, way %u: byte %#llx differs, over %s",
				 (unsigned long long)seq, how,
				 (unsigned long long)i, skips_mid ? "base" : "mid");
	free(buf);
	close_all(c);
	close_files(c);
}

static void
record_commit(struct chain *c, uint64_t *ret_first, uint64_t *ret_last)
{
	struct block_commit_args a = { .job_id = (char *)"c", .device = (char *)"active",
				       .top_node = (char *)"mid",
				       .base_node = (char *)"base" };
	struct root *guest;

	open_all(c, LAYERS, false);
	guest = must_root(c->node[2], PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
	for (unsigned i = 0; i < LAYERS; i++) {
		c->disk[i]->no_log = false;
		memdisk_checkpoint(c->disk[i]);
	}
	a.backing_file = (char *)"base";
	MUST(commit_start(&a, &err));
	wait_for_job("c", JOB_STATUS_NULL);
	assert_string_equal(seen.text, "");
	root_free(guest);
	close_all(c);
	*ret_first = UINT64_MAX;
	*ret_last = 0;
	for (unsigned i = 0; i < LAYERS; i++) {
		const struct memdisk *m = c->disk[i];

		if (!m->log_count)
			continue;
		*ret_first = min_u64(*ret_first, m->log[0].seq);
		*ret_last = max_u64(*ret_last, m->log[m->log_count - 1].seq);
	}
	for (unsigned i = 0; i < LAYERS; i++)
		node_unref(c->file[i]);
}

static void
no_power_cut_shows_in_the_chain_co(void *arg)
{
	unsigned over_base = 0, states = 0;
	uint64_t first, last, step;
	struct chain c = { 0 };

	(void)arg;
	watch_jobs();
	memset(model, 0, SIZE);
	make_chain(&c);
	record_commit(&c, &first, &last);
	step = max_u64((last - first) / STATES_MAX, 1);
	/* The end closely, the rest in steps. */
	for (uint64_t seq = first - 1; seq <= last; seq += seq + 60 > last ? 1 : step)
		for (unsigned how = KEEP_ALL; how <= KEEP_SOME; how++) {
			struct cut cut = { .how = how, .rng = { seq * 3 + 1 } };
			struct chain left = { 0 };

			cut_power(&c, seq, &cut, &left);
			judge(&left, seq, how, &over_base);
			states++;
		}
	/* Both sides of the switch were seen. */
	assert_in_range(over_base, 1, states - 1);
	print_message("%u states judged, %u of them behind the switch\n", states, over_base);
	for (unsigned i = 0; i < LAYERS; i++)
		memdisk_free(c.disk[i]);
}

static void
no_power_cut_shows_in_the_chain(void **state)
{
	(void)state;
	run(no_power_cut_shows_in_the_chain_co, NULL);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(no_power_cut_shows_in_the_chain),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
