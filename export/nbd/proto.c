/* SPDX-License-Identifier: Apache-2.0 */
#include "export/nbd/proto.h"

#include <errno.h>
#include <stddef.h>

#include "base/cleanup.h"

static const char *const option_names[] = {
	[NBD_OPT_EXPORT_NAME] = "export name",
	[NBD_OPT_ABORT] = "abort",
	[NBD_OPT_LIST] = "list",
	[NBD_OPT_STARTTLS] = "starttls",
	[NBD_OPT_INFO] = "info",
	[NBD_OPT_GO] = "go",
	[NBD_OPT_STRUCTURED_REPLY] = "structured reply",
	[NBD_OPT_LIST_META_CONTEXT] = "list meta context",
	[NBD_OPT_SET_META_CONTEXT] = "set meta context",
	[NBD_OPT_EXTENDED_HEADERS] = "extended headers",
};

static const char *const command_names[] = {
	[NBD_CMD_READ] = "read",
	[NBD_CMD_WRITE] = "write",
	[NBD_CMD_DISC] = "disconnect",
	[NBD_CMD_FLUSH] = "flush",
	[NBD_CMD_TRIM] = "trim",
	[NBD_CMD_CACHE] = "cache",
	[NBD_CMD_WRITE_ZEROES] = "write zeroes",
	[NBD_CMD_BLOCK_STATUS] = "block status",
};

static const char *
name_in(const char *const *names, size_t count, uint32_t n)
{
	return n < count && names[n] ? names[n] : "<unknown>";
}

const char *
nbd_proto_option_name(uint32_t option)
{
	return name_in(option_names, ARRAY_SIZE(option_names), option);
}

const char *
nbd_proto_command_name(uint16_t command)
{
	return name_in(command_names, ARRAY_SIZE(command_names), command);
}

uint32_t
nbd_proto_error(int err)
{
	enum {
		WIRE_EPERM = 1, WIRE_EIO = 5, WIRE_ENOMEM = 12, WIRE_EINVAL = 22,
		WIRE_ENOSPC = 28, WIRE_EOVERFLOW = 75, WIRE_ENOTSUP = 95,
		WIRE_ESHUTDOWN = 108,
	};

	switch (err < 0 ? -err : err) {
	case 0:
		return 0;
	case EPERM:
	case EROFS:
		return WIRE_EPERM;
	case EIO:
		return WIRE_EIO;
	case ENOMEM:
		return WIRE_ENOMEM;
	case EDQUOT:
	case EFBIG:
	case ENOSPC:
		return WIRE_ENOSPC;
	case EOVERFLOW:
		return WIRE_EOVERFLOW;
	case EOPNOTSUPP:
		return WIRE_ENOTSUP;
	case ESHUTDOWN:
		return WIRE_ESHUTDOWN;
	default:
		return WIRE_EINVAL;
	}
}
