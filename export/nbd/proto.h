/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/proto.h - the numbers of the NBD protocol, and their names.
 *
 * As in doc/proto.md of the NBD project; all integers on the wire are big
 * endian.  Names are those that QEMU's server uses in its texts.
 */
#ifndef EXPORT_NBD_PROTO_H
#define EXPORT_NBD_PROTO_H

#include <stdint.h>

#define NBD_MAGIC		 UINT64_C(0x4e42444d41474943)	/* "NBDMAGIC" */
#define NBD_OPTION_MAGIC	 UINT64_C(0x49484156454f5054)	/* "IHAVEOPT" */
#define NBD_REPLY_MAGIC		 UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC	 UINT32_C(0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC	 UINT32_C(0x67446698)
#define NBD_STRUCTURED_REPLY_MAGIC UINT32_C(0x668e33ef)
#define NBD_EXTENDED_REQUEST_MAGIC UINT32_C(0x21e41c71)
#define NBD_EXTENDED_REPLY_MAGIC UINT32_C(0x6e8a278c)

enum {
	NBD_GREETING_SIZE = 18,
	NBD_OPTION_SIZE = 16,		/* of an option's header */
	NBD_OPTION_REPLY_SIZE = 20,
	NBD_REQUEST_SIZE = 28,
	NBD_SIMPLE_REPLY_SIZE = 16,
	NBD_CHUNK_SIZE = 20,		/* of a structured reply chunk's header */
	NBD_EXTENDED_REQUEST_SIZE = 32,
	NBD_EXTENDED_CHUNK_SIZE = 32,
	NBD_EXPORT_NAME_ZEROES = 124,

	NBD_STRING_MAX = 4096,		/* names, descriptions, queries */
	NBD_PAYLOAD_MAX = 32 << 20,	/* of a request or reply */
};

/* How requests and replies look, as options have agreed on it. */
enum nbd_mode {
	NBD_MODE_SIMPLE,
	NBD_MODE_STRUCTURED,	/* replies in chunks */
	NBD_MODE_EXTENDED,	/* these, and all headers with 64-bit lengths */
};

/* handshake flags, and the client's */
enum {
	NBD_FLAG_FIXED_NEWSTYLE = 1 << 0,
	NBD_FLAG_NO_ZEROES = 1 << 1,
};

/* transmission flags */
enum {
	NBD_FLAG_HAS_FLAGS = 1 << 0,
	NBD_FLAG_READ_ONLY = 1 << 1,
	NBD_FLAG_SEND_FLUSH = 1 << 2,
	NBD_FLAG_SEND_FUA = 1 << 3,
	NBD_FLAG_SEND_TRIM = 1 << 5,
	NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
	NBD_FLAG_SEND_DF = 1 << 7,
	NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
	NBD_FLAG_SEND_CACHE = 1 << 10,
	NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
	NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12,
};

enum nbd_option {
	NBD_OPT_EXPORT_NAME = 1,
	NBD_OPT_ABORT = 2,
	NBD_OPT_LIST = 3,
	NBD_OPT_STARTTLS = 5,
	NBD_OPT_INFO = 6,
	NBD_OPT_GO = 7,
	NBD_OPT_STRUCTURED_REPLY = 8,
	NBD_OPT_LIST_META_CONTEXT = 9,
	NBD_OPT_SET_META_CONTEXT = 10,
	NBD_OPT_EXTENDED_HEADERS = 11,
};

#define NBD_REP_ERR(n) (UINT32_C(0x80000000) | (n))
enum {
	NBD_REP_ACK = 1,
	NBD_REP_SERVER = 2,
	NBD_REP_INFO = 3,
	NBD_REP_META_CONTEXT = 4,
};
#define NBD_REP_ERR_UNSUP	NBD_REP_ERR(1)
#define NBD_REP_ERR_POLICY	NBD_REP_ERR(2)
#define NBD_REP_ERR_INVALID	NBD_REP_ERR(3)
#define NBD_REP_ERR_TLS_REQD	NBD_REP_ERR(5)
#define NBD_REP_ERR_UNKNOWN	NBD_REP_ERR(6)
#define NBD_REP_ERR_SHUTDOWN	NBD_REP_ERR(7)
#define NBD_REP_ERR_BLOCK_SIZE_REQD NBD_REP_ERR(8)
#define NBD_REP_ERR_TOO_BIG	NBD_REP_ERR(9)
#define NBD_REP_ERR_EXT_HEADER_REQD NBD_REP_ERR(10)

enum {
	NBD_INFO_EXPORT = 0,
	NBD_INFO_NAME = 1,
	NBD_INFO_DESCRIPTION = 2,
	NBD_INFO_BLOCK_SIZE = 3,
};

enum nbd_command_type {
	NBD_CMD_READ = 0,
	NBD_CMD_WRITE = 1,
	NBD_CMD_DISC = 2,
	NBD_CMD_FLUSH = 3,
	NBD_CMD_TRIM = 4,
	NBD_CMD_CACHE = 5,
	NBD_CMD_WRITE_ZEROES = 6,
	NBD_CMD_BLOCK_STATUS = 7,
};

enum {
	NBD_CMD_FLAG_FUA = 1 << 0,
	NBD_CMD_FLAG_NO_HOLE = 1 << 1,
	NBD_CMD_FLAG_DF = 1 << 2,
	NBD_CMD_FLAG_REQ_ONE = 1 << 3,
	NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
	NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5,
};

enum {
	NBD_CHUNK_FLAG_DONE = 1 << 0,

	NBD_CHUNK_NONE = 0,
	NBD_CHUNK_OFFSET_DATA = 1,
	NBD_CHUNK_OFFSET_HOLE = 2,
	NBD_CHUNK_BLOCK_STATUS = 5,
	NBD_CHUNK_BLOCK_STATUS_EXT = 6,
	NBD_CHUNK_ERROR = 0x8001,
};

/* flags of an extent of base:allocation */
enum {
	NBD_STATE_HOLE = 1 << 0,
	NBD_STATE_ZERO = 1 << 1,
};

/* of an extent of qemu:dirty-bitmap: */
enum { NBD_STATE_DIRTY = 1 << 0 };

/* For texts: "go", "structured reply", ...; "<unknown>" for the rest. */
const char *nbd_proto_option_name(uint32_t option);
const char *nbd_proto_command_name(uint16_t command);

/* The protocol's error number for an errno of either sign; 0 is 0. */
uint32_t nbd_proto_error(int err);

#endif
