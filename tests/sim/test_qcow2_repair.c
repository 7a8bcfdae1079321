/* SPDX-License-Identifier: Apache-2.0 */
/* Power cuts during a repair.
 *
 * An image is damaged so that its guest data is still there, and repaired.  Whatever
 * moment the power goes, and whichever of the writes that were not flushed yet get
 * lost: what is left has no more faults than before, the guest's data is the same, and
 * the next repair makes it sound; one more changes nothing. */
#include "tests/sim/powercut.h"
#include "tests/unit/block_test.h"

#include "block/check.h"
#include "block/open.h"

enum { SIZE = 200 << 10, CLUSTER = 1024, ALL = CHECK_FIX_LEAKS | CHECK_FIX_ERRORS };

static struct node *
open_image(bool read_only, bool check)
{
	const struct open_policy policy = { .check = check };
	struct BlockdevRef file = { .type = BLOCKDEV_REF_REFERENCE, .u.reference = (char *)"file" };
	struct BlockdevOptions o = {
		.node_name = (char *)"image", .driver = BLOCKDEV_DRIVER_QCOW2,
		.has_read_only = true, .read_only = read_only, .u.qcow2 = { .file = &file },
	};
	struct node *n = NULL;

	MUST(node_open(&o, &policy, &n, &err));
	return n;
}

/* An image with something in it, some of it allocated and zero. */
static void
make_image(uint8_t *model)
{
	struct BlockdevRef file = { .type = BLOCKDEV_REF_REFERENCE, .u.reference = (char *)"file" };
	struct BlockdevCreateOptions o = {
		.driver = BLOCKDEV_DRIVER_QCOW2,
		.u.qcow2 = { .file = &file, .size = SIZE, .has_cluster_size = true,
			     .cluster_size = CLUSTER },
	};
	struct node *n;

	MUST(driver_find("qcow2")->create(&o, &err));
	memset(model, 0, SIZE);
	for (int i = 0; i < SIZE; i++)
		model[i] = i / 3000 % 4 ? (uint8_t)(1 + i / 1000) : 0;
	n = open_image(false, false);
	assert_int_equal(node_pwrite(n, 0, model, SIZE), 0);
	assert_int_equal(node_zero(n, 20480, 2048, 0), 0);
	memset(model + 20480, 0, 2048);
	node_unref(n);
}

/* ---- damage ---- */

struct places {
	uint8_t *image;
	uint64_t l2, reftable, block, clusters;
};

static struct places
places_of(struct memdisk *m)
{
	struct places p = { .image = m->content, .clusters = m->size / CLUSTER };

	p.l2 = get_be64(p.image + get_be64(p.image + 40)) & UINT64_C(0x00fffffffffffe00);
	p.reftable = get_be64(p.image + 48);
	p.block = get_be64(p.image + p.reftable);
	return p;
}

static void
wrong_counts(struct places *p)
{
	for (uint64_t i = 3; i < CLUSTER / 2 && i < p->clusters; i += 5)
		put_be16(p->image + p->block + 2 * i, (uint16_t)(2 + i % 3));
}

static void
no_counts(struct places *p)
{
	memset(p->image + p->reftable, 0, CLUSTER);
}

static void
some_counts_gone(struct places *p)
{
	memset(p->image + p->block + 40, 0, 100);
}

static void
wrong_flags(struct places *p)
{
	for (int i = 0; i < 64; i += 3)
		p->image[p->l2 + 8 * i] ^= 0x80;
}

static void
shared_block(struct places *p)
{
	put_be64(p->image + p->reftable + 8, p->block);
}

/* A zero cluster with an impossible place, and the marks. */
static void
odd_place(struct places *p)
{
	put_be64(p->image + p->l2 + 8 * 20, (UINT64_C(1) << 63) | 0x1201);
	put_be64(p->image + 72, 3);
}

static void (*const damages[])(struct places *) = {
	wrong_counts, no_counts, some_counts_gone, wrong_flags, shared_block, odd_place,
};

/* ---- judging ---- */

static struct check_result
check(unsigned fix)
{
	struct node *n = open_image(!fix, true);
	struct check_result r;

	(void)node_check(n, fix, NULL, &r);
	node_unref(n);
	return r;
}

static bool
is_sound(const struct check_result *r)
{
	return !r->errors && !r->corruptions && !r->leaks;
}

/* A cluster in an impossible place cannot be read before it is repaired. */
static void
judge_data(const uint8_t *model, size_t cut, bool repaired)
{
	uint8_t *buf = malloc(SIZE);
	struct node *n = open_image(true, false);
	int r;

	r = node_pread(n, 0, buf, SIZE);
	assert_true(!r || !repaired);
	for (int i = 0; i < SIZE && !r; i++)
		if (buf[i] != model[i])
			fail_msg("cut at %zu: byte %#x differs", cut, i);
	node_unref(n);
	free(buf);
}

/* "file" is what is left. */
static void
judge(struct memdisk *left, const struct check_result *before, const uint8_t *model, size_t cut)
{
	struct check_result r = check(0);
	uint8_t *sound;
	uint64_t size;

	if (r.corruptions + r.errors > before->corruptions + before->errors)
		fail_msg("cut at %zu: %u faults, and %u before", cut, (unsigned)r.corruptions,
			 (unsigned)before->corruptions);
	judge_data(model, cut, false);
	(void)check(ALL);
	r = check(0);
	if (!is_sound(&r))
		fail_msg("cut at %zu: cannot be repaired", cut);
	judge_data(model, cut, true);
	size = left->size;
	sound = malloc(size);
	memcpy(sound, left->content, size);
	(void)check(ALL);
	assert_int_equal(left->size, size);
	assert_memory_equal(left->content, sound, size);
	free(sound);
}

static void
judge_cut(const struct memdisk *whole, size_t count, struct cut *cut,
	  const struct check_result *before, const uint8_t *model)
{
	uint64_t size;
	uint8_t *image = memdisk_image(whole, count, cut_keeps, cut, &size);
	struct memdisk *left = memdisk_new(size);
	struct node *file;

	left->no_log = true;
	memcpy(left->content, image, size);
	free(image);
	file = must_mem(left, "file");
	judge(left, before, model, count);
	node_unref(file);
	memdisk_free(left);
}

/* Damage, look, repair; the disk's log is of the repair. */
static struct memdisk *
repair(size_t damage, uint8_t *model, struct check_result *ret_before)
{
	struct memdisk *m = memdisk_new(0);
	struct node *file = must_mem(m, "file");
	struct places p;

	make_image(model);
	p = places_of(m);
	damages[damage](&p);
	memdisk_checkpoint(m);
	*ret_before = check(0);
	assert_false(is_sound(ret_before) && damage != 5);
	(void)check(ALL);
	node_unref(file);
	return m;
}

static void
power_cuts_co(void *arg)
{
	uint8_t *model = malloc(SIZE);
	unsigned states = 0;

	(void)arg;
	for (size_t d = 0; d < ARRAY_SIZE(damages); d++) {
		struct check_result before;
		struct memdisk *m = repair(d, model, &before);

		for (size_t count = 0; count <= m->log_count; count++)
			for (unsigned how = 0; how <= KEEP_SOME; how++, states++) {
				struct cut cut = { how, { count * 5 + how } };

				judge_cut(m, count, &cut, &before, model);
			}
		memdisk_free(m);
	}
	print_message("%u states judged\n", states);
	assert_true(states > 100);
	free(model);
}

static void
power_cuts(void **state)
{
	(void)state;
	run(power_cuts_co, NULL);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(power_cuts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
