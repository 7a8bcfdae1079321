/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/request.c - commands: a table of what each may be, and does. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/io.h"
#include "export/nbd/conn.h"
#include "export/nbd/proto.h"
#include "export/nbd/status.h"

enum {
	CACHE_PIECE = 1 << 20,

	/* A read with structured replies leaves zeroes out.  Short ones are looked
	 * at when they have been read, which costs next to nothing; for long ones
	 * the node is asked first. */
	SPARSE_MIN = 64 << 10,
	SPARSE_CHUNKS = 48,
	SPARSE_HEAD = NBD_EXTENDED_CHUNK_SIZE + 12,
};

enum trait {
	CARRIES_DATA = 1 << 0,	/* len bytes follow the request */
	GETS_DATA = 1 << 1,	/* len bytes follow the reply */
	CAPPED = 1 << 2,	/* len is at most NBD_PAYLOAD_MAX */
	WRITES = 1 << 3,
	MAY_CARRY = 1 << 4,	/* a short payload may follow an extended request */
};

struct nbd_command {
	void (*run)(struct nbd_request *q);
	unsigned traits;
	uint16_t flags[NBD_MODE_EXTENDED + 1];	/* that it may have, from a mode on */
	bool (*unpack)(struct nbd_request *q);	/* before it is checked; false: replied */
	/* that it needs at most; NULL: as much as it has data */
	uint32_t (*memory)(const struct nbd_session *session, uint16_t flags, uint64_t len);
};

static bool
wants_fua(const struct nbd_request *q)
{
	return q->flags & NBD_CMD_FLAG_FUA || q->conn->writethrough;
}

/* The reply of all commands that return no data. */
static void
reply_status(struct nbd_request *q, int r, const char *what)
{
	if (r < 0)
		nbd_reply_error(q, r, "%s", what);
	else
		nbd_reply_done(q);
}

/* ---- read ---- */

/* A reply in several chunks: q->small is free for it, as the data is large. */
struct sparse {
	struct iovec vec[2 * SPARSE_CHUNKS];
	uint8_t heads[SPARSE_CHUNKS][SPARSE_HEAD];
	unsigned chunks, vectors;
};
static_assert(sizeof(struct sparse) <= NBD_SMALL, "a sparse reply is described in place");

static void
sparse_add(struct sparse *s, struct nbd_request *q, uint32_t at, uint32_t len, bool hole)
{
	unsigned flags = at + len == q->len ? NBD_CHUNK_FLAG_DONE : 0;
	uint8_t *end = s->heads[s->chunks++] + SPARSE_HEAD, *head;

	if (hole) {
		put_be64(end - 12, q->offset + at);
		put_be32(end - 4, len);
		head = nbd_reply_chunk(end - 12, q, flags, NBD_CHUNK_OFFSET_HOLE, 12);
		s->vec[s->vectors++] = (struct iovec){ head, (size_t)(end - head) };
		return;
	}
	put_be64(end - 8, q->offset + at);
	head = nbd_reply_chunk(end - 8, q, flags, NBD_CHUNK_OFFSET_DATA, len + 8);
	s->vec[s->vectors++] = (struct iovec){ head, (size_t)(end - head) };
	s->vec[s->vectors++] = (struct iovec){ q->data + at, len };
}

static void
run_sparse_read(struct nbd_request *q)
{
	struct sparse *s = (struct sparse *)nbd_request_small(q);
	uint32_t at = 0, len;

	s->chunks = s->vectors = 0;
	for (; at < q->len; at += len) {
		struct extent e = { .len = q->len - at, .flags = EXTENT_DATA };
		int r = 0;

		/* The last chunk takes all the rest. */
		if (s->chunks < SPARSE_CHUNKS - 1)
			r = io_status(q->conn->root, q->offset + at, q->len - at, true, &e);
		if (r < 0) {
			nbd_reply_error(q, r, "unable to check for holes: %s", strerror(-r));
			return;
		}
		len = (uint32_t)min_u64(e.len, q->len - at);
		if (!(e.flags & EXTENT_ZERO)) {
			struct iov v = IOV_BUF(q->data + at, len);

			r = io_read(q->conn->root, q->offset + at, &v);
		}
		if (r < 0) {
			nbd_reply_error(q, r, "reading from file failed");
			return;
		}
		sparse_add(s, q, at, len, e.flags & EXTENT_ZERO);
	}
	q->reply = s->vec;
	q->reply_count = s->vectors;
	nbd_reply_queue(q);
}

/* All that was read is zero: say so in place of the data. */
static void
reply_hole(struct nbd_request *q)
{
	uint8_t *head = nbd_reply_chunk(q->data, q, NBD_CHUNK_FLAG_DONE, NBD_CHUNK_OFFSET_HOLE,
					12);

	put_be64(q->data, q->offset);
	put_be32(q->data + 8, (uint32_t)q->len);
	nbd_reply_queue_one(q, head, (size_t)(q->data - head) + 12);
}

static void
run_read(struct nbd_request *q)
{
	struct iov v = IOV_BUF(NULL, q->len);
	bool sparse = q->conn->session.mode >= NBD_MODE_STRUCTURED && !(q->flags & NBD_CMD_FLAG_DF);
	int r;

	if (nbd_pool_room(q, q->len) < 0) {
		nbd_reply_error(q, -ENOMEM, "No memory");
		return;
	}
	v.vec[0].iov_base = q->data;
	if (q->flags & NBD_CMD_FLAG_FUA) {
		r = io_flush(q->conn->root);
		if (r < 0) {
			nbd_reply_error(q, r, "flush failed");
			return;
		}
	}
	if (sparse && q->len >= SPARSE_MIN) {
		run_sparse_read(q);
		return;
	}
	r = q->len ? io_read(q->conn->root, q->offset, &v) : 0;
	if (r < 0)
		nbd_reply_error(q, r, "reading from file failed");
	else if (sparse && q->len > 12 && bytes_are_zero(q->data, q->len))
		reply_hole(q);
	else
		nbd_reply_data(q);
}

/* ---- the others ---- */

static void
run_write(struct nbd_request *q)
{
	struct iov v = IOV_BUF(q->payload, q->len);

	if (q->len && !q->payload) {
		nbd_reply_error(q, -ENOMEM, "No memory");
		return;
	}
	reply_status(q, io_write(q->conn->root, q->offset, &v, wants_fua(q) ? IO_FUA : 0),
		     "writing to file failed");
}

static void
run_write_zeroes(struct nbd_request *q)
{
	unsigned flags = wants_fua(q) ? IO_FUA : 0;

	if (!(q->flags & NBD_CMD_FLAG_NO_HOLE))
		flags |= IO_MAY_UNMAP;
	if (q->flags & NBD_CMD_FLAG_FAST_ZERO)
		flags |= IO_FAST;
	reply_status(q, io_zero(q->conn->root, q->offset, q->len, flags),
		     "writing to file failed");
}

static void
run_trim(struct nbd_request *q)
{
	int r = io_discard(q->conn->root, q->offset, q->len);

	if (r >= 0 && wants_fua(q))
		r = io_flush(q->conn->root);
	reply_status(q, r, "discard failed");
}

static void
run_flush(struct nbd_request *q)
{
	reply_status(q, io_flush(q->conn->root), "flush failed");
}

static uint32_t
cache_memory(const struct nbd_session *session, uint16_t flags, uint64_t len)
{
	(void)session;
	(void)flags;
	return (uint32_t)min_u64(len, CACHE_PIECE);
}

/* What is read comes into the caches below, and is not looked at here. */
static void
run_cache(struct nbd_request *q)
{
	uint32_t at = 0, len;
	int r = q->len ? nbd_pool_room(q, min_u64(q->len, CACHE_PIECE)) : 0;

	for (; r >= 0 && at < q->len; at += len) {
		len = (uint32_t)min_u64(q->len - at, CACHE_PIECE);
		struct iov v = IOV_BUF(q->data, len);

		r = io_read(q->conn->root, q->offset + at, &v);
	}
	reply_status(q, r, "caching data failed");
}

/* ---- the table ---- */

static const struct nbd_command commands[] = {
	[NBD_CMD_READ] = {
		run_read, GETS_DATA | CAPPED,
		{ NBD_CMD_FLAG_FUA, [NBD_MODE_STRUCTURED] = NBD_CMD_FLAG_DF } },
	[NBD_CMD_WRITE] = {
		run_write, CARRIES_DATA | CAPPED | WRITES,
		{ NBD_CMD_FLAG_FUA, [NBD_MODE_EXTENDED] = NBD_CMD_FLAG_PAYLOAD_LEN } },
	[NBD_CMD_FLUSH] = { run_flush, 0, { NBD_CMD_FLAG_FUA } },
	[NBD_CMD_TRIM] = { run_trim, WRITES, { NBD_CMD_FLAG_FUA } },
	[NBD_CMD_CACHE] = { run_cache, CAPPED, { NBD_CMD_FLAG_FUA }, .memory = cache_memory },
	[NBD_CMD_WRITE_ZEROES] = {
		run_write_zeroes, WRITES,
		{ NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO } },
	[NBD_CMD_BLOCK_STATUS] = {
		nbd_status_run, MAY_CARRY,
		{ NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE,
		  [NBD_MODE_EXTENDED] = NBD_CMD_FLAG_PAYLOAD_LEN },
		nbd_status_unpack, nbd_status_memory },
};

static void
run_unknown(struct nbd_request *q)
{
	nbd_reply_error(q, -EINVAL, "invalid request type (%u) received", q->type);
}

static const struct nbd_command unknown_command = { run_unknown, 0, { NBD_CMD_FLAG_FUA } };

const struct nbd_command *
nbd_request_command(uint16_t type)
{
	return type < ARRAY_SIZE(commands) && commands[type].run ? &commands[type]
								 : &unknown_command;
}

struct nbd_payload
nbd_request_payload(const struct nbd_command *cmd, enum nbd_mode mode, uint16_t flags,
		    uint64_t len)
{
	bool carries = cmd->traits & CARRIES_DATA;
	bool announced = mode == NBD_MODE_EXTENDED && flags & NBD_CMD_FLAG_PAYLOAD_LEN;

	/* QEMU's client forgets the flag that must announce a write's data.  They come
	 * all the same; not to expect them would be to take for requests what a guest
	 * has written. */
	if (!carries && !announced)
		return (struct nbd_payload){ 0 };
	return (struct nbd_payload){
		.len = len,
		.kept = len <= (carries			   ? NBD_PAYLOAD_MAX
				: cmd->traits & MAY_CARRY ? NBD_STATUS_PAYLOAD_MAX
							   : 0),
		.fatal = len > NBD_PAYLOAD_MAX,
	};
}

uint32_t
nbd_request_data(const struct nbd_command *cmd, uint64_t len)
{
	return cmd->traits & (CARRIES_DATA | GETS_DATA) && len <= NBD_PAYLOAD_MAX ? (uint32_t)len
										  : 0;
}

uint32_t
nbd_request_memory(const struct nbd_command *cmd, const struct nbd_session *session,
		   uint16_t flags, uint64_t len)
{
	return cmd->memory ? cmd->memory(session, flags, len) : nbd_request_data(cmd, len);
}

static bool
has_legal_flags(const struct nbd_request *q)
{
	unsigned legal = 0;

	for (enum nbd_mode m = NBD_MODE_SIMPLE; m <= q->conn->session.mode; m++)
		legal |= q->command->flags[m];
	return !(q->flags & ~legal);
}

static bool
is_too_long(const struct nbd_request *q)
{
	return q->len > NBD_PAYLOAD_MAX &&
	       (q->command->traits & CAPPED || q->flags & NBD_CMD_FLAG_PAYLOAD_LEN);
}

/* May it run?  If not, the error is queued. */
static bool
check(struct nbd_request *q)
{
	const struct nbd_command *cmd = q->command;
	const struct nbd_conn *c = q->conn;

	if (is_too_long(q))
		nbd_reply_error(q, -EINVAL, "len (%" PRIu64 ") is larger than max len (%u)",
				q->len, (unsigned)NBD_PAYLOAD_MAX);
	else if (cmd->unpack && !cmd->unpack(q))
		return false;
	else if (cmd->traits & WRITES && c->transmission_flags & NBD_FLAG_READ_ONLY)
		nbd_reply_error(q, -EROFS, "Export is read-only");
	else if (!range_within(q->offset, q->len, c->size))
		nbd_reply_error(q, cmd->traits & WRITES && q->type != NBD_CMD_TRIM ? -ENOSPC : -EINVAL,
				"operation past EOF; From: %" PRIu64 ", Len: %" PRIu64
				", Size: %" PRIu64, q->offset, q->len, c->size);
	else if (!has_legal_flags(q))
		nbd_reply_error(q, -EINVAL, "unsupported flags for command %s (got 0x%x)",
				nbd_proto_command_name(q->type), q->flags);
	else
		return true;
	return false;
}

void
nbd_request_run(void *request)
{
	struct nbd_request *q = request;

	if (check(q))
		q->command->run(q);
}
