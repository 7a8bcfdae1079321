/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct error {
	enum error_class cls;
	char *text, *hint;	/* hint: NULL if there is none */
};

static struct error error_no_memory = {
	.cls = ERROR_GENERIC,
	.text = (char *)"Cannot allocate memory",
};

static struct error *
error_new(enum error_class cls, char *text)
{
	struct error *err = text ? malloc(sizeof(*err)) : NULL;

	if (!err) {
		free(text);
		return &error_no_memory;
	}
	err->cls = cls;
	err->text = text;
	err->hint = NULL;
	return err;
}

static char *__attribute__((format(printf, 1, 0)))
format(const char *fmt, va_list ap)
{
	char *text;

	return vasprintf(&text, fmt, ap) < 0 ? NULL : text;
}

int
error_vset(struct error **errp, enum error_class cls, const char *fmt, va_list ap)
{
	if (!errp)
		return -1;
	assert(!*errp);
	*errp = error_new(cls, format(fmt, ap));
	return -1;
}

int
error_set(struct error **errp, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	error_vset(errp, ERROR_GENERIC, fmt, ap);
	va_end(ap);
	return -1;
}

int
error_set_class(struct error **errp, enum error_class cls, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	error_vset(errp, cls, fmt, ap);
	va_end(ap);
	return -1;
}

int
error_set_errno(struct error **errp, int err, const char *fmt, ...)
{
	va_list ap;

	err = abs(err);
	va_start(ap, fmt);
	error_vset(errp, ERROR_GENERIC, fmt, ap);
	va_end(ap);
	error_append(errp, ": %s", strerror(err));
	return -err;
}

/* Replace the text of *errp by the two parts; on no memory it stays. */
static void
splice(struct error **errp, const char *front, const char *back)
{
	char *text;

	if (*errp == &error_no_memory)
		return;
	if (asprintf(&text, "%s%s", front, back) < 0)
		return;
	free((*errp)->text);
	(*errp)->text = text;
}

void
error_prepend(struct error **errp, const char *fmt, ...)
{
	va_list ap;
	char *part;

	if (!errp || !*errp)
		return;
	va_start(ap, fmt);
	part = format(fmt, ap);
	va_end(ap);
	if (part)
		splice(errp, part, (*errp)->text);
	free(part);
}

void
error_append(struct error **errp, const char *fmt, ...)
{
	va_list ap;
	char *part;

	if (!errp || !*errp)
		return;
	va_start(ap, fmt);
	part = format(fmt, ap);
	va_end(ap);
	if (part)
		splice(errp, (*errp)->text, part);
	free(part);
}

void
error_set_hint(struct error **errp, const char *fmt, ...)
{
	va_list ap;
	char *hint;

	if (!errp || !*errp || *errp == &error_no_memory)
		return;
	va_start(ap, fmt);
	hint = format(fmt, ap);
	va_end(ap);
	if (!hint)
		return;
	free((*errp)->hint);
	if (asprintf(&(*errp)->hint, "\n%s", hint) < 0)
		(*errp)->hint = NULL;
	free(hint);
}

void
error_propagate(struct error **errp, struct error *err)
{
	if (!err)
		return;
	if (errp && !*errp)
		*errp = err;
	else
		error_free(err);
}

const char *
error_text(const struct error *err)
{
	return err->text;
}

const char *
error_hint(const struct error *err)
{
	return err->hint ? err->hint : "";
}

enum error_class
error_get_class(const struct error *err)
{
	return err->cls;
}

const char *
error_class_name(enum error_class cls)
{
	static const char *const names[] = {
		[ERROR_GENERIC] = "GenericError",
		[ERROR_COMMAND_NOT_FOUND] = "CommandNotFound",
		[ERROR_DEVICE_NOT_ACTIVE] = "DeviceNotActive",
		[ERROR_DEVICE_NOT_FOUND] = "DeviceNotFound",
		[ERROR_KVM_MISSING_CAP] = "KVMMissingCap",
	};

	return names[cls];
}

void
error_free(struct error *err)
{
	if (!err || err == &error_no_memory)
		return;
	free(err->text);
	free(err->hint);
	free(err);
}

void
error_freep(struct error **err)
{
	error_free(*err);
	*err = NULL;
}
