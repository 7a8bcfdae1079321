/* SPDX-License-Identifier: Apache-2.0 */
/* aio/tls_creds.h - what one side of TLS shows of itself and asks of the other.
 *
 * Read from the files of a folder, whose names are QEMU's: ca-cert.pem,
 * ca-crl.pem, server-cert.pem, server-key.pem, client-cert.pem,
 * client-key.pem, keys.psk, dh-params.pem.  They are read once: who replaces
 * a file makes new credentials.
 *
 * Context    any thread; loading blocks in files, so a worker does it.
 * Errors     0 or -1 with *errp, whose texts are QEMU's.
 */
#ifndef AIO_TLS_CREDS_H
#define AIO_TLS_CREDS_H

#include <stdbool.h>

struct error;
struct tls_creds;

enum tls_kind {
	TLS_X509,	/* certificates */
	TLS_PSK,	/* keys that both sides know */
	TLS_ANON,	/* nobody knows whom he talks to */
};

struct tls_config {
	enum tls_kind kind;
	bool server;
	const char *dir;		/* NULL: none, which only TLS_ANON can do with */
	const char *priority;		/* GnuTLS's priority string; NULL: the default */
	const char *username;		/* of a TLS_PSK client; NULL: "qemu" */
	bool verify_peer;		/* TLS_X509: its certificate must be good */
	bool sanity_check;		/* TLS_X509: our own ones too, now */
};

/* The caller's reference.  Coroutine: reads files on a worker thread. */
int tls_creds_load(const struct tls_config *config, struct tls_creds **ret, struct error **errp);

struct tls_creds *tls_creds_ref(struct tls_creds *c);
void tls_creds_unref(struct tls_creds *c);	/* takes NULL */

bool tls_creds_is_server(const struct tls_creds *c);

/* A file with a secret that everybody may read; NULL: there is none. */
const char *tls_creds_exposed(const struct tls_creds *c);

#endif
