/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/authz.h"

#include <string.h>

#include "schema/types.h"

bool
authz_glob(const char *pattern, const char *text)
{
	const char *star = NULL, *from = NULL;

	while (*text) {
		if (*pattern == '*') {
			star = pattern++;
			from = text;
		} else if (*pattern == '?' || *pattern == *text) {
			pattern++;
			text++;
		} else if (star) {
			/* The last star takes one character more. */
			pattern = star + 1;
			text = ++from;
		} else {
			return false;
		}
	}
	return !pattern[strspn(pattern, "*")];
}

static bool
fits(const struct QAuthZListRule *r, const char *identity)
{
	return r->format == QAUTH_ZLIST_FORMAT_GLOB ? authz_glob(r->match, identity)
						      : !strcmp(r->match, identity);
}

bool
authz_list_allows(const struct AuthZListProperties *list, const char *identity)
{
	for (size_t i = 0; list->rules && i < list->rules->count; i++)
		if (fits(list->rules->items[i], identity))
			return list->rules->items[i]->policy == QAUTH_ZLIST_POLICY_ALLOW;
	return list->policy == QAUTH_ZLIST_POLICY_ALLOW;
}
