/* SPDX-License-Identifier: Apache-2.0 */
/* base/error.h - errors as people and QMP clients read them.
 *
 * Inside the program an error is a negative errno.  Where a client will read
 * it, a function takes `struct error **errp` last, sets it once on failure and
 * leaves it alone on success.  errp may be NULL: the caller does not want it.
 *
 * Texts are one line, without a full stop at the end unless they hold several
 * sentences; where QEMU has a text for the same situation, it is that text.
 *
 * Context    any thread.
 * Ownership  the caller of a failed function owns *errp: error_free().
 * Errors     out of memory while an error is made gives a static error, which
 *            is as good as any other and may be freed like any other.
 */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include <stdarg.h>

/* The classes of QMP (qemu, qapi/error.json, QapiErrorClass). */
enum error_class {
	ERROR_GENERIC,
	ERROR_COMMAND_NOT_FOUND,
	ERROR_DEVICE_NOT_ACTIVE,
	ERROR_DEVICE_NOT_FOUND,
	ERROR_KVM_MISSING_CAP,
};

struct error;

/* Set *errp, which must be unset.  All return -1, so that a failing function
 * of the 0/-1 kind can `return error_set(errp, ...)`. */
int error_set(struct error **errp, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
int error_set_class(struct error **errp, enum error_class cls, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
int error_vset(struct error **errp, enum error_class cls, const char *fmt, va_list ap)
	__attribute__((format(printf, 3, 0)));

/* As error_set(), with ": " and the text of the errno behind it.  err is an
 * errno of either sign.  Returns -abs(err), for functions of the -errno kind. */
int error_set_errno(struct error **errp, int err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Put a text in front of, or behind, what *errp says.  No-op where unset. */
void error_prepend(struct error **errp, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
void error_append(struct error **errp, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* What may be the cause, or what to do: for people at a terminal or a log, not for QMP
 * clients, as with QEMU.  No-op where unset. */
void error_set_hint(struct error **errp, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Move err into *errp; freed if errp is NULL or already set. */
void error_propagate(struct error **errp, struct error *err);

const char *error_text(const struct error *err);
/* To be printed right behind the text: a line feed and the hint, or "". */
const char *error_hint(const struct error *err);
enum error_class error_get_class(const struct error *err);
const char *error_class_name(enum error_class cls);

void error_free(struct error *err);	/* takes NULL */
void error_freep(struct error **err);	/* for CLEANUP */

#endif
