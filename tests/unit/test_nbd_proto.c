/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of export/nbd: names, errors, commands, contexts. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "export/nbd/conn.h"
#include "export/nbd/proto.h"
#include "export/nbd/status.h"

static void
options_have_names(void **state)
{
	(void)state;
	assert_string_equal(nbd_proto_option_name(NBD_OPT_GO), "go");
	assert_string_equal(nbd_proto_option_name(NBD_OPT_SET_META_CONTEXT), "set meta context");
	assert_string_equal(nbd_proto_option_name(0), "<unknown>");
	assert_string_equal(nbd_proto_option_name(4), "<unknown>");
	assert_string_equal(nbd_proto_option_name(UINT32_MAX), "<unknown>");
}

static void
commands_have_names(void **state)
{
	(void)state;
	assert_string_equal(nbd_proto_command_name(NBD_CMD_READ), "read");
	assert_string_equal(nbd_proto_command_name(NBD_CMD_WRITE_ZEROES), "write zeroes");
	assert_string_equal(nbd_proto_command_name(8), "<unknown>");
	assert_string_equal(nbd_proto_command_name(UINT16_MAX), "<unknown>");
}

static void
errors_are_those_of_the_protocol(void **state)
{
	static const struct {
		int err;
		uint32_t wire;
	} cases[] = {
		{ 0, 0 }, { EPERM, 1 }, { EROFS, 1 }, { EIO, 5 }, { ENOMEM, 12 },
		{ EINVAL, 22 }, { ENOSPC, 28 }, { EFBIG, 28 }, { EDQUOT, 28 },
		{ EOVERFLOW, 75 }, { EOPNOTSUPP, 95 }, { ESHUTDOWN, 108 },
		{ EAGAIN, 22 }, { ENOENT, 22 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(nbd_proto_error(cases[i].err), cases[i].wire);
		assert_int_equal(nbd_proto_error(-cases[i].err), cases[i].wire);
	}
}

static void
only_writes_carry_data(void **state)
{
	(void)state;
	for (unsigned type = 0; type < 300; type++) {
		const struct nbd_command *cmd = nbd_request_command((uint16_t)type);

		assert_non_null(cmd);
		assert_int_equal(nbd_request_payload(cmd, 77), type == NBD_CMD_WRITE ? 77 : 0);
	}
}

static void
lengths_are_capped_where_memory_is_needed(void **state)
{
	const uint32_t max = NBD_PAYLOAD_MAX;

	(void)state;
	for (unsigned type = 0; type < 10; type++) {
		const struct nbd_command *cmd = nbd_request_command((uint16_t)type);
		bool moves = type == NBD_CMD_READ || type == NBD_CMD_WRITE;

		assert_false(nbd_request_too_long(cmd, max));
		assert_int_equal(nbd_request_too_long(cmd, max + 1),
				 moves || type == NBD_CMD_CACHE);
		assert_int_equal(nbd_request_memory(cmd, max), moves ? max : 0);
		assert_int_equal(nbd_request_memory(cmd, max + 1), 0);
		assert_int_equal(nbd_request_memory(cmd, UINT32_MAX), 0);
	}
}

static void
contexts_are_found_by_name(void **state)
{
	const unsigned allocation = 1u << NBD_CONTEXT_ALLOCATION, depth = 1u << NBD_CONTEXT_DEPTH;

	(void)state;
	assert_int_equal(nbd_status_query("base:allocation", false), allocation);
	assert_int_equal(nbd_status_query("qemu:allocation-depth", false), depth);
	assert_int_equal(nbd_status_query("base:", true), allocation);
	assert_int_equal(nbd_status_query("qemu:", true), depth);
	assert_int_equal(nbd_status_query("base:", false), 0);
	for (int listing = 0; listing < 2; listing++) {
		assert_int_equal(nbd_status_query("", listing), 0);
		assert_int_equal(nbd_status_query("base", listing), 0);
		assert_int_equal(nbd_status_query("base:alloc", listing), 0);
		assert_int_equal(nbd_status_query("base:allocation2", listing), 0);
		assert_int_equal(nbd_status_query("x:allocation", listing), 0);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(options_have_names),
		cmocka_unit_test(commands_have_names),
		cmocka_unit_test(errors_are_those_of_the_protocol),
		cmocka_unit_test(only_writes_carry_data),
		cmocka_unit_test(lengths_are_capped_where_memory_is_needed),
		cmocka_unit_test(contexts_are_found_by_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
