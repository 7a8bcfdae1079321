/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "aio/ctx.h"

/* No sanitizer hears of these switches: keep to plain arithmetic. */

enum { STACK = 64 * 1024, SWITCHES = 10000 };

static struct ctx thread, other;
static uint64_t from_other;
static double from_other_float;
static uintptr_t other_frame;

/* More live values than there are scratch registers, so that some are in the
 * registers that a switch must keep; both sides use them. */
static void
other_entry(void)
{
	uint64_t a = 1, b = 2, c = 3, d = 4, e = 5, f = 6, g = 7, h = 8;
	double x = 1.5, y = 2.5, z = 3.5, u = 4.5;
	int local;

	other_frame = (uintptr_t)&local;
	for (;;) {
		ctx_switch(&other, &thread);
		a += b, b += c, c += d, d += e, e += f, f += g, g += h, h += a;
		x += y, y += z, z += u, u += 1.0;
		from_other = a ^ b ^ c ^ d ^ e ^ f ^ g ^ h;
		from_other_float = x + y + z + u;
	}
}

static void
test_registers_survive_switches(void **state)
{
	uint64_t a = 1, b = 2, c = 3, d = 4, e = 5, f = 6, g = 7, h = 8;
	double x = 1.5, y = 2.5, z = 3.5, u = 4.5;
	char *stack = malloc(STACK);

	(void)state;
	assert_non_null(stack);
	ctx_init(&other, stack, STACK, other_entry);
	ctx_switch(&thread, &other);
	assert_true(other_frame > (uintptr_t)stack && other_frame < (uintptr_t)stack + STACK);
	for (int i = 0; i < SWITCHES; i++) {
		a += b, b += c, c += d, d += e, e += f, f += g, g += h, h += a;
		x += y, y += z, z += u, u += 1.0;
		ctx_switch(&thread, &other);
		if (from_other != (a ^ b ^ c ^ d ^ e ^ f ^ g ^ h) ||
		    from_other_float != x + y + z + u)
			fail_msg("a register was lost in switch %d", i);
	}
	free(stack);
}

/* A stack pointer that is off shows when an aligned local is stored to. */
static uintptr_t misalignment;

static void
aligned_entry(void)
{
	_Alignas(16) volatile char local[64] = { 0 };

	misalignment = (uintptr_t)local % 16;
	ctx_switch(&other, &thread);
	abort();
}

static void
test_stack_is_aligned_as_after_a_call(void **state)
{
	(void)state;
	for (size_t odd = 0; odd < 32; odd += 5) {
		char *stack = malloc(STACK);

		assert_non_null(stack);
		misalignment = 1;
		ctx_init(&other, stack, STACK - odd, aligned_entry);
		ctx_switch(&thread, &other);
		assert_int_equal(misalignment, 0);
		free(stack);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_registers_survive_switches),
		cmocka_unit_test(test_stack_is_aligned_as_after_a_call),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
