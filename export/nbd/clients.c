/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/clients.c - who uses an export, for people who ask. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "export/nbd/conn.h"
#include "export/nbd/export.h"
#include "export/nbd/listen.h"
#include "export/nbd/server.h"
#include "schema/types.h"

void
nbd_clients_note_peer(struct nbd_conn *c, int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	c->peer = nbd_listen_address(fd, true);
	if (!c->peer || c->peer->type != SOCKET_ADDRESS_TYPE_UNIX)
		return;
	/* Clients have no names in the file system. */
	SocketAddress_free(STEAL(c->peer));
	if (!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len)) {
		c->pid = cred.pid;
		c->uid = cred.uid;
	}
}

static int
describe(struct nbd_conn *c, struct NbdClientInfo *info)
{
	uint64_t answered = nbd_count_get(&c->counts.answered);

	info->server = strdup(c->server->id);
	info->address = meta_clone(&SocketAddress_meta, c->peer);
	info->has_pid = info->has_uid = c->pid;
	info->pid = c->pid;
	info->uid = c->uid;
	info->tls = c->tls;
	info->identity = c->identity ? strdup(c->identity) : NULL;
	info->requests = nbd_count_get(&c->counts.requests);
	/* Counted by another thread: what was begun meanwhile was not answered. */
	info->in_flight = info->requests > answered ? info->requests - answered : 0;
	info->bytes_read = nbd_count_get(&c->counts.read);
	info->bytes_written = nbd_count_get(&c->counts.written);
	return !info->server || (c->peer && !info->address) || (c->identity && !info->identity)
		       ? -ENOMEM : 0;
}

static int
add(struct nbd_conn *c, struct NbdClientInfoList **list)
{
	struct NbdClientInfo *info = calloc(1, sizeof(*info));

	if (!*list)
		*list = calloc(1, sizeof(**list));
	if (info && *list && describe(c, info) == 0 && NbdClientInfoList_add(*list, info) == 0)
		return 0;
	NbdClientInfo_free(info);
	return -ENOMEM;
}

int
nbd_clients_query(const struct nbd_export *e, struct BlockExportInfo *info)
{
	struct nbd_conn *c;

	for (unsigned i = 0; i < e->n_shown; i++) {
		if (!e->shown[i].server)
			continue;
		LIST_FOREACH(c, &e->shown[i].server->conns, link)
			if (c->export == e && add(c, &info->x_quoin_clients) < 0)
				return -ENOMEM;
	}
	return 0;
}
