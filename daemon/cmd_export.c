/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/cmd_export.c - commands on exports and the NBD server. */
#include "daemon/cmd_export.h"

#include "aio/timer.h"
#include "base/error.h"
#include "block/node.h"
#include "block/root.h"
#include "daemon/object.h"
#include "daemon/systemd.h"
#include "export/export.h"
#include "export/nbd/server.h"
#include "schema/commands.h"
#include "schema/events.h"
#include "schema/types.h"

static const struct export_hooks hooks = {
	.on_deleted = qmp_event_send_block_export_deleted,
	.take_iothread = object_take_iothread,
	.release_iothread = object_release_iothread,
	.take_tls_creds = object_take_tls_creds,
	.is_authorized = object_is_authorized,
	.take_socket = systemd_take_socket,
};

void
cmd_export_init(void)
{
	export_set_hooks(&hooks);
}

static bool
shows_peer(const struct export *e)
{
	return node_has_peer(root_node(e->root));
}

/* A node may be a client of our own exports: while they are there, it is flushed and
 * closed.  One that is exported itself waits for that export to end, and each lies
 * with an older one.  Where one does not end, all have the time of the rest. */
static void
close_own_clients(void)
{
	do {
		node_close_peers();
	} while (export_del_newest(shows_peer));
}

void
cmd_export_done(void)
{
	close_own_clients();
	nbd_server_stop_all();
	/* All kinds that there are have been waited for. */
	export_close_all(NULL, clock_ns());
}

/* The two forms of an address differ in one level of nesting. */
static void
flatten(const struct SocketAddressLegacy *from, struct SocketAddress *to)
{
	to->type = from->type;
	switch (from->type) {
	case SOCKET_ADDRESS_TYPE_INET:
		to->u.inet = *from->u.inet.data;
		break;
	case SOCKET_ADDRESS_TYPE_UNIX:
		to->u.q_unix = *from->u.q_unix.data;
		break;
	case SOCKET_ADDRESS_TYPE_VSOCK:
		to->u.vsock = *from->u.vsock.data;
		break;
	case SOCKET_ADDRESS_TYPE_FD:
		to->u.fd = *from->u.fd.data;
		break;
	default:
		break;
	}
}

int
qmp_nbd_server_start(const struct NbdServerOptionsLegacy *args, struct error **errp)
{
	struct SocketAddress addr;
	struct NbdServerOptions opts = {
		.has_handshake_max_seconds = args->has_handshake_max_seconds,
		.handshake_max_seconds = args->handshake_max_seconds,
		.tls_creds = args->tls_creds,
		.tls_authz = args->tls_authz,
		.has_max_connections = args->has_max_connections,
		.max_connections = args->max_connections,
		.addr = &addr,
	};

	flatten(args->addr, &addr);
	return nbd_server_start(NULL, &opts, false, errp);
}

int
qmp_nbd_server_stop(struct error **errp)
{
	return nbd_server_stop(NULL, errp);
}

int
qmp_x_quoin_nbd_server_add(const struct NbdServerAdd *args, struct error **errp)
{
	struct NbdServerOptions opts = {
		.has_handshake_max_seconds = args->has_handshake_max_seconds,
		.handshake_max_seconds = args->handshake_max_seconds,
		.tls_creds = args->tls_creds,
		.tls_authz = args->tls_authz,
		.has_max_connections = args->has_max_connections,
		.max_connections = args->max_connections,
		.addr = args->addr,
	};
	bool optional = args->has_tls && args->tls == NBD_TLS_USE_OPTIONAL;

	if (args->has_tls && !args->tls_creds)
		return error_set(errp, "Parameter 'tls' needs 'tls-creds'");
	return nbd_server_start(args->id, &opts, optional, errp);
}

int
qmp_x_quoin_nbd_server_del(const struct x_quoin_nbd_server_del_args *args, struct error **errp)
{
	return nbd_server_stop(args->id, errp);
}

int
qmp_x_quoin_query_nbd_servers(struct NbdServerInfoList **ret, struct error **errp)
{
	return nbd_server_query(ret, errp);
}

int
qmp_nbd_server_add(const struct NbdServerAddOptions *args, struct error **errp)
{
	char *name = args->name ? args->name : args->device;
	struct BlockDirtyBitmapOrStr bitmap = { .type = BLOCK_DIRTY_BITMAP_OR_STR_LOCAL };
	struct BlockDirtyBitmapOrStr *bitmap_list[] = { &bitmap };
	struct BlockDirtyBitmapOrStrList bitmaps = { .count = 1, .items = bitmap_list };
	struct BlockExportOptions opts = {
		.type = BLOCK_EXPORT_TYPE_NBD,
		.id = name,
		.node_name = args->device,
		.has_writable = true,
	};
	struct node *n;

	if (!nbd_server_default())
		return error_set(errp, "NBD server not running");
	n = node_find(args->device);
	if (!n)
		return error_set(errp, "Cannot find device='%s' nor node-name='%s'",
				 args->device, args->device);
	opts.writable = args->writable && !node_is_read_only(n);
	opts.u.nbd.name = args->name;
	opts.u.nbd.description = args->description;
	if (args->bitmap) {
		bitmap.u.local = args->bitmap;
		opts.u.nbd.bitmaps = &bitmaps;
	}
	return export_add(&opts, errp);
}

int
qmp_nbd_server_remove(const struct nbd_server_remove_args *args, struct error **errp)
{
	return export_del(args->name, args->mode == BLOCK_EXPORT_REMOVE_MODE_HARD, errp);
}

int
qmp_block_export_add(const struct BlockExportOptions *args, struct error **errp)
{
	return export_add(args, errp);
}

int
qmp_block_export_del(const struct block_export_del_args *args, struct error **errp)
{
	return export_del(args->id, args->mode == BLOCK_EXPORT_REMOVE_MODE_HARD, errp);
}

int
qmp_query_block_exports(struct BlockExportInfoList **ret, struct error **errp)
{
	return export_query(ret, errp);
}
