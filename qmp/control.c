/* SPDX-License-Identifier: Apache-2.0 */
/* The commands that are about the session and the interface itself. */
#include <string.h>

#include "base/error.h"
#include "qmp/command.h"
#include "qmp/server.h"
#include "qmp/server_int.h"
#include "qmp/session.h"
#include "schema/commands.h"
#include "schema/introspect.h"

static int
no_memory(struct error **errp)
{
	return error_set(errp, "Cannot allocate memory");
}

int
qmp_qmp_capabilities(const struct qmp_capabilities_args *args, struct error **errp)
{
	struct qmp_session *s = qmp_session_current();

	if (s->negotiated)
		return error_set_class(errp, ERROR_COMMAND_NOT_FOUND,
				       "Capabilities negotiation is already complete, command ignored");
	for (size_t i = 0; args->enable && i < args->enable->count; i++)
		if (args->enable->items[i] == QMP_CAPABILITY_OOB)
			s->oob = true;
	s->negotiated = true;
	return 0;
}

int
qmp_query_version(struct VersionInfo **ret, struct error **errp)
{
	struct VersionInfo *v = calloc(1, sizeof(*v));

	if (v) {
		v->qemu = calloc(1, sizeof(*v->qemu));
		v->package = strdup(server_config()->package);
	}
	if (!v || !v->qemu || !v->package) {
		VersionInfo_free(v);
		return no_memory(errp);
	}
	v->qemu->major = 10;
	*ret = v;
	return 0;
}

static int
add_command(struct CommandInfoList *list, const char *name)
{
	struct CommandInfo *info = calloc(1, sizeof(*info));

	if (info)
		info->name = strdup(name);
	if (info && info->name && CommandInfoList_add(list, info) == 0)
		return 0;
	CommandInfo_free(info);
	return -1;
}

int
qmp_query_commands(struct CommandInfoList **ret, struct error **errp)
{
	bool read_only = qmp_session_current()->flags & QMP_STREAM_READ_ONLY;
	struct CommandInfoList *list = calloc(1, sizeof(*list));
	const struct qmp_command *c = server_config()->commands;

	for (; list && c->name; c++) {
		if (read_only && !(c->flags & QMP_READ_ONLY))
			continue;
		if (add_command(list, c->name) < 0) {
			CommandInfoList_free(list);
			list = NULL;
		}
	}
	if (!list)
		return no_memory(errp);
	*ret = list;
	return 0;
}

int
qmp_query_qmp_schema(char **ret, struct error **errp)
{
	*ret = strdup(schema_introspection);
	return *ret ? 0 : no_memory(errp);
}
