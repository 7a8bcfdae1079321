/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/dispatch.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/error.h"
#include "qmp/command.h"
#include "qmp/json.h"
#include "qmp/server_int.h"
#include "qmp/server.h"
#include "qmp/session.h"
#include "schema/decode.h"
#include "schema/encode.h"
#include "schema/meta.h"

/* A request taken apart. */
struct request {
	const char *name;
	struct json_object *args;	/* NULL: none were given */
	bool oob;
};

bool
dispatch_is_oob(const struct qmp_session *s, struct json_object *request)
{
	return s->oob && json_object_is_type(request, json_type_object) &&
	       json_object_object_get_ex(request, "exec-oob", NULL);
}

static int
take_apart(const struct qmp_session *s, struct json_object *tree,
	   struct request *ret, struct error **errp)
{
	if (!json_object_is_type(tree, json_type_object))
		return error_set(errp, "QMP input must be a JSON object");
	json_object_object_foreach(tree, key, value) {
		bool oob = s->oob && !strcmp(key, "exec-oob");

		if (!strcmp(key, "execute") || oob) {
			if (!json_object_is_type(value, json_type_string))
				return error_set(errp,
						 "QMP input member '%s' must be a string",
						 key);
			if (ret->name)
				return error_set(errp,
						 "QMP input member 'execute' clashes with 'exec-oob'");
			ret->name = json_object_get_string(value);
			ret->oob = oob;
		} else if (!strcmp(key, "arguments")) {
			if (!json_object_is_type(value, json_type_object))
				return error_set(errp,
						 "QMP input member 'arguments' must be an object");
			ret->args = value;
		} else if (strcmp(key, "id") != 0) {
			return error_set(errp,
					 "QMP input member '%.200s' is unexpected",
					 key);
		}
	}
	if (!ret->name)
		return error_set(errp, "QMP input lacks member 'execute'");
	return 0;
}

static const struct qmp_command *
find(const char *name)
{
	const struct qmp_command *c = server_config()->commands;

	while (c->name && strcmp(c->name, name) != 0)
		c++;
	return c->name ? c : NULL;
}

static const struct qmp_command *
find_allowed(const struct qmp_session *s, const struct request *rq,
	     struct error **errp)
{
	const struct qmp_command *c = find(rq->name);

	if (!s->negotiated && strcmp(rq->name, "qmp_capabilities") != 0)
		error_set_class(errp, ERROR_COMMAND_NOT_FOUND,
				"Expecting capabilities negotiation with 'qmp_capabilities'");
	else if (!c)
		error_set_class(errp, ERROR_COMMAND_NOT_FOUND,
				"The command %.200s has not been found", rq->name);
	else if ((s->flags & QMP_STREAM_READ_ONLY) && !(c->flags & QMP_READ_ONLY))
		error_set_class(errp, ERROR_COMMAND_NOT_FOUND,
				"The command %s is not available on a read-only socket",
				rq->name);
	else if (rq->oob && !(c->flags & QMP_OOB))
		error_set(errp, "The command %s does not support OOB", rq->name);
	else
		return c;
	return NULL;
}

static int
decode_args(const struct qmp_command *c, struct json_object *args, void **ret,
	    struct error **errp)
{
	static const struct meta nothing = {
		.name = "nothing", .kind = META_OBJECT, .size = 1,
	};
	struct json_object *none = NULL;
	int r;

	if (!args) {
		none = json_object_new_object();
		if (!none)
			return error_set(errp, "Cannot allocate memory");
	}
	r = decode(c->args ? c->args : &nothing, args ? args : none, DECODE_JSON,
		   ret, errp);
	json_object_put(none);
	return r;
}

/* Append '"return": ...' to the reply. */
static int
run(const struct qmp_command *c, const void *args, struct buf *reply,
    struct error **errp)
{
	_Alignas(16) char slot[16] = { 0 };

	if (c->run(args, slot, errp) < 0)
		return -1;
	buf_adds(reply, "{\"return\": ");
	if (c->ret) {
		encode_slot(reply, c->ret, slot);
		meta_clear_slot(c->ret, slot);
	} else {
		buf_adds(reply, "{}");
	}
	return 0;
}

static int
execute(struct qmp_session *s, struct json_object *tree, struct buf *reply,
	struct error **errp)
{
	struct request rq = { 0 };
	const struct qmp_command *c;
	void *args = NULL;
	int r;

	if (take_apart(s, tree, &rq, errp) < 0)
		return -1;
	c = find_allowed(s, &rq, errp);
	if (!c || decode_args(c, rq.args, &args, errp) < 0)
		return -1;
	r = run(c, args, reply, errp);
	if (c->args)
		meta_free(c->args, args);
	else
		free(args);
	return r;
}

static void
add_id(bool has_id, struct json_object *id, struct buf *reply)
{
	if (!has_id)
		return;
	buf_adds(reply, ", \"id\": ");
	json_write(reply, id);
}

void
dispatch_error(const struct error *err, bool has_id, struct json_object *id,
	       struct buf *reply)
{
	buf_reset(reply);
	buf_addf(reply, "{\"error\": {\"class\": \"%s\", \"desc\": ",
		 error_class_name(error_get_class(err)));
	encode_string(reply, error_text(err));
	buf_adds(reply, "}");
	add_id(has_id, id, reply);
	buf_adds(reply, "}");
}

void
dispatch(struct qmp_session *s, struct json_object *request, struct buf *reply)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct json_object *id = NULL;
	bool has_id = json_object_is_type(request, json_type_object) &&
		      json_object_object_get_ex(request, "id", &id);

	if (execute(s, request, reply, &err) == 0) {
		add_id(has_id, id, reply);
		buf_adds(reply, "}");
		if (!reply->failed)
			return;
		/* Done, but the reply does not fit in memory: say that much. */
		error_set(&err, "Cannot allocate memory");
	}
	dispatch_error(err, has_id, id, reply);
}
