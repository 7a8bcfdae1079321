/* SPDX-License-Identifier: Apache-2.0 */
/* aio/tls_int.h - private to aio/tls*.c. */
#ifndef AIO_TLS_INT_H
#define AIO_TLS_INT_H

#include <gnutls/gnutls.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "aio/tls_creds.h"

struct tls_creds {
	atomic_uint refs;
	enum tls_kind kind;
	bool server, verify_peer;
	char *priority;		/* complete */
	char *exposed;		/* tls_creds_exposed() */
	union {
		gnutls_certificate_credentials_t x509;
		gnutls_psk_server_credentials_t psk_server;
		gnutls_psk_client_credentials_t psk_client;
		gnutls_anon_server_credentials_t anon_server;
		gnutls_anon_client_credentials_t anon_client;
		void *any;
	} u;
	gnutls_dh_params_t dh;	/* NULL: well-known ones */
};

/* The certificate in cert and those of the authorities in ca are what a server or
 * client needs.  cert NULL: there is none. */
int tls_check_certs(const char *ca, const char *cert, bool server, struct error **errp);

/* In words; status is GnuTLS's of a verification that failed. */
const char *tls_check_reason(unsigned status);

#endif
