/* SPDX-License-Identifier: Apache-2.0 */
/* aio/tls_none.c - a build without GnuTLS: there are no credentials, so nobody gets
 * as far as a session. */
#include <stdlib.h>

#include "aio/sock.h"
#include "aio/tls.h"
#include "base/error.h"

int
tls_creds_load(const struct tls_config *config, struct tls_creds **ret, struct error **errp)
{
	(void)config;
	(void)ret;
	return error_set(errp, "TLS credentials support requires GNUTLS");
}

struct tls_creds *
tls_creds_ref(struct tls_creds *c)
{
	return c;
}

void
tls_creds_unref(struct tls_creds *c)
{
	(void)c;
}

bool
tls_creds_is_server(const struct tls_creds *c)
{
	(void)c;
	abort();
}

const char *
tls_creds_exposed(const struct tls_creds *c)
{
	(void)c;
	abort();
}

int
tls_start(struct sock *s, struct tls_creds *creds, const char *hostname, struct error **errp)
{
	(void)s;
	(void)creds;
	(void)hostname;
	(void)errp;
	abort();
}

const char *
tls_peer(const struct sock *s)
{
	(void)s;
	return NULL;
}
