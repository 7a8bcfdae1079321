/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of export/nbd: names, errors, commands, contexts. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "export/nbd/conn.h"
#include "export/nbd/export.h"
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
		for (enum nbd_mode m = NBD_MODE_SIMPLE; m < NBD_MODE_EXTENDED; m++)
			for (uint16_t flags = 0; flags < 64; flags += 32)
				assert_int_equal(nbd_request_payload(cmd, m, flags, 77).len,
						 type == NBD_CMD_WRITE ? 77 : 0);
	}
}

static void
extended_requests_carry_data_where_the_flag_says_so(void **state)
{
	(void)state;
	for (unsigned type = 0; type < 300; type++) {
		const struct nbd_command *cmd = nbd_request_command((uint16_t)type);
		bool keeps = type == NBD_CMD_WRITE || type == NBD_CMD_BLOCK_STATUS;
		struct nbd_payload p;

		p = nbd_request_payload(cmd, NBD_MODE_EXTENDED, NBD_CMD_FLAG_PAYLOAD_LEN, 77);
		assert_true(p.len == 77 && p.kept == keeps && !p.fatal);
		p = nbd_request_payload(cmd, NBD_MODE_EXTENDED, NBD_CMD_FLAG_PAYLOAD_LEN,
					NBD_PAYLOAD_MAX);
		assert_true(p.len == NBD_PAYLOAD_MAX && p.kept == (type == NBD_CMD_WRITE) && !p.fatal);
		p = nbd_request_payload(cmd, NBD_MODE_EXTENDED, NBD_CMD_FLAG_PAYLOAD_LEN,
					NBD_PAYLOAD_MAX + 1);
		assert_true(!p.kept && p.fatal);
		p = nbd_request_payload(cmd, NBD_MODE_EXTENDED, 0, 77);
		assert_int_equal(p.len, type == NBD_CMD_WRITE ? 77 : 0);
	}
}

static void
memory_is_capped(void **state)
{
	const struct nbd_session two = { .contexts = 5 }, all = { .contexts = UINT64_MAX };
	const struct nbd_command *status = nbd_request_command(NBD_CMD_BLOCK_STATUS);
	const struct nbd_command *cache = nbd_request_command(NBD_CMD_CACHE);
	const uint32_t max = NBD_PAYLOAD_MAX;
	uint32_t one, most;

	(void)state;
	for (unsigned type = 0; type < 10; type++) {
		const struct nbd_command *cmd = nbd_request_command((uint16_t)type);
		bool moves = type == NBD_CMD_READ || type == NBD_CMD_WRITE;

		assert_int_equal(nbd_request_data(cmd, max), moves ? max : 0);
		assert_int_equal(nbd_request_data(cmd, max + 1), 0);
		assert_int_equal(nbd_request_data(cmd, UINT64_MAX), 0);
		if (cmd != status && cmd != cache)
			assert_int_equal(nbd_request_memory(cmd, &all, 0, max), moves ? max : 0);
	}
	assert_int_equal(nbd_request_memory(cache, &all, 0, 5000), 5000);
	assert_int_equal(nbd_request_memory(cache, &all, 0, UINT64_MAX), 1 << 20);
	/* Of block status by contexts, and by extents up to a number. */
	one = nbd_request_memory(status, &two, NBD_CMD_FLAG_REQ_ONE, UINT64_MAX);
	most = nbd_request_memory(status, &two, 0, UINT64_MAX);
	assert_true(one > 0 && one < 200 && most > 1 << 17);
	assert_true(nbd_request_memory(status, &two, 0, 512) < 200);
	assert_int_equal(nbd_request_memory(status, &two, NBD_CMD_FLAG_PAYLOAD_LEN, 12), most);
	assert_int_equal(nbd_request_memory(status, &all, 0, UINT64_MAX), most * 32);
	assert_true(most * 32 < NBD_BYTES_MAX);
}

static void
contexts_are_found_by_name(void **state)
{
	const struct nbd_export e = { .allocation_depth = true }, plain = { 0 };
	const unsigned allocation = 1u << NBD_CONTEXT_ALLOCATION, depth = 1u << NBD_CONTEXT_DEPTH;

	(void)state;
	assert_int_equal(nbd_status_query(&e, "base:allocation", false), allocation);
	assert_int_equal(nbd_status_query(&e, "qemu:allocation-depth", false), depth);
	assert_int_equal(nbd_status_query(&plain, "qemu:allocation-depth", false), 0);
	assert_int_equal(nbd_status_query(&e, "base:", true), allocation);
	assert_int_equal(nbd_status_query(&e, "qemu:", true), depth);
	assert_int_equal(nbd_status_query(&plain, "qemu:", true), 0);
	assert_int_equal(nbd_status_query(&e, "base:", false), 0);
	assert_int_equal(nbd_status_query(&e, "qemu:", false), 0);
	for (int listing = 0; listing < 2; listing++) {
		assert_int_equal(nbd_status_query(&e, "", listing), 0);
		assert_int_equal(nbd_status_query(&e, "base", listing), 0);
		assert_int_equal(nbd_status_query(&e, "base:alloc", listing), 0);
		assert_int_equal(nbd_status_query(&e, "base:allocation2", listing), 0);
		assert_int_equal(nbd_status_query(&e, "x:allocation", listing), 0);
		assert_int_equal(nbd_status_query(&e, "qemu:dirty-bitmap:", listing), 0);
		assert_int_equal(nbd_status_query(&e, "qemu:dirty-bitmap:x", listing), 0);
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
		cmocka_unit_test(extended_requests_carry_data_where_the_flag_says_so),
		cmocka_unit_test(memory_is_capped),
		cmocka_unit_test(contexts_are_found_by_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
