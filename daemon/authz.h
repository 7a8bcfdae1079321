/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/authz.h - rules that say who may connect: authz-simple, authz-list.
 *
 * Context    any thread.
 */
#ifndef DAEMON_AUTHZ_H
#define DAEMON_AUTHZ_H

#include <stdbool.h>

struct AuthZListProperties;

/* The first rule that fits decides. */
bool authz_list_allows(const struct AuthZListProperties *list, const char *identity);

/* Does text read as pattern?  '*' is any number of characters, '?' one; nothing else
 * is special. */
bool authz_glob(const char *pattern, const char *text);

#endif
