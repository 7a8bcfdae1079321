/* SPDX-License-Identifier: Apache-2.0 */
/* aio/tls_check.c - would the other side take our certificates?
 *
 * Asked when credentials are made, because there is somebody to read the
 * answer: in a handshake a wrong certificate is just a connection that ends.
 */
#include <gnutls/x509.h>
#include <string.h>
#include <time.h>

#include "aio/tls_int.h"
#include "base/cleanup.h"
#include "base/error.h"

/* One certificate, and how texts call it. */
struct subject {
	gnutls_x509_crt_t crt;
	const char *file;
	bool server, ca;
};

const char *
tls_check_reason(unsigned status)
{
	if (status & GNUTLS_CERT_INSECURE_ALGORITHM)
		return "The certificate uses an insecure algorithm";
	if (status & GNUTLS_CERT_REVOKED)
		return "The certificate has been revoked";
	if (status & GNUTLS_CERT_SIGNER_NOT_FOUND)
		return "The certificate hasn't got a known issuer";
	if (status & GNUTLS_CERT_INVALID)
		return "The certificate is not trusted";
	return "Invalid certificate";
}

static int
check_times(const struct subject *s, struct error **errp)
{
	const char *what = s->ca ? "CA" : s->server ? "server" : "client";
	time_t now = time(NULL);

	if (gnutls_x509_crt_get_expiration_time(s->crt) < now)
		return error_set(errp, "The %s certificate %s has expired", what, s->file);
	if (gnutls_x509_crt_get_activation_time(s->crt) > now)
		return error_set(errp, "The %s certificate %s is not yet active", what, s->file);
	return 0;
}

static int
check_constraints(const struct subject *s, struct error **errp)
{
	int r = gnutls_x509_crt_get_basic_constraints(s->crt, NULL, NULL, NULL);

	if (r < 0 && r != GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
		return error_set(errp, "Unable to query certificate %s basic constraints: %s",
				 s->file, gnutls_strerror(r));
	if (r > 0 && !s->ca)
		return error_set(errp, "The certificate %s basic constraints show a CA,"
				 " but we need one for a %s", s->file,
				 s->server ? "server" : "client");
	if (r == 0 && s->ca)
		return error_set(errp, "The certificate %s basic constraints do not show a CA",
				 s->file);
	if (r < 0 && s->ca)
		return error_set(errp, "The certificate %s is missing basic constraints for a CA",
				 s->file);
	return 0;
}

/* What is not critical is a hint, which nobody enforces. */
static int
check_usage(const struct subject *s, struct error **errp)
{
	unsigned usage = 0, critical = 0;
	int r = gnutls_x509_crt_get_key_usage(s->crt, &usage, &critical);

	if (r == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
		return 0;
	if (r < 0)
		return error_set(errp, "Unable to query certificate %s key usage: %s", s->file,
				 gnutls_strerror(r));
	if (!critical)
		return 0;
	if (s->ca && !(usage & GNUTLS_KEY_KEY_CERT_SIGN))
		return error_set(errp, "Certificate %s usage does not permit certificate signing",
				 s->file);
	if (!s->ca && !(usage & GNUTLS_KEY_DIGITAL_SIGNATURE))
		return error_set(errp, "Certificate %s usage does not permit digital signature",
				 s->file);
	if (!s->ca && !(usage & GNUTLS_KEY_KEY_ENCIPHERMENT))
		return error_set(errp, "Certificate %s usage does not permit key encipherment",
				 s->file);
	return 0;
}

static int
check_purpose(const struct subject *s, struct error **errp)
{
	const char *wanted = s->server ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT;
	bool allowed = false, any_critical = false;

	for (unsigned i = 0;; i++) {
		char oid[256];
		size_t size = sizeof(oid);
		unsigned critical = 0;
		int r = gnutls_x509_crt_get_key_purpose_oid(s->crt, i, oid, &size, &critical);

		/* One that names no purpose is good for all. */
		if (r == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE) {
			allowed = allowed || i == 0;
			break;
		}
		/* So long an id is none that we look for. */
		if (r == GNUTLS_E_SHORT_MEMORY_BUFFER)
			continue;
		if (r < 0)
			return error_set(errp, "Unable to query certificate %s key purpose: %s",
					 s->file, gnutls_strerror(r));
		any_critical = any_critical || critical;
		allowed = allowed || !strcmp(oid, wanted) || !strcmp(oid, GNUTLS_KP_ANY);
	}
	if (!allowed && any_critical)
		return error_set(errp, "Certificate %s purpose does not allow use with a TLS %s",
				 s->file, s->server ? "server" : "client");
	return 0;
}

static int
check_one(const struct subject *s, struct error **errp)
{
	if (check_times(s, errp) < 0 || check_constraints(s, errp) < 0 ||
	    check_usage(s, errp) < 0)
		return -1;
	return s->ca ? 0 : check_purpose(s, errp);
}

static int
load_own(const char *file, bool server, gnutls_x509_crt_t *ret, struct error **errp)
{
	gnutls_datum_t data = { NULL, 0 };
	int r = gnutls_load_file(file, &data);

	if (r < 0)
		return error_set(errp, "Cannot load CA cert list %s: %s", file, gnutls_strerror(r));
	r = gnutls_x509_crt_init(ret);
	if (r >= 0)
		r = gnutls_x509_crt_import(*ret, &data, GNUTLS_X509_FMT_PEM);
	gnutls_free(data.data);
	if (r < 0)
		return error_set(errp, "Unable to import %s certificate %s: %s",
				 server ? "server" : "client", file, gnutls_strerror(r));
	return 0;
}

/* All certificates in a file: the count, at least one. */
static int
load_cas(const char *file, gnutls_x509_crt_t **ret, struct error **errp)
{
	gnutls_datum_t data = { NULL, 0 };
	unsigned n = 0;
	int r = gnutls_load_file(file, &data);

	if (r < 0)
		return error_set(errp, "Cannot load CA cert list %s: %s", file, gnutls_strerror(r));
	r = gnutls_x509_crt_list_import2(ret, &n, &data, GNUTLS_X509_FMT_PEM, 0);
	gnutls_free(data.data);
	if (r < 0)
		return error_set(errp, "Unable to import CA certificate list %s", file);
	return (int)n;
}

static int
check_pair(const struct subject *own, gnutls_x509_crt_t *cas, int n_cas, const char *ca_file,
	   struct error **errp)
{
	unsigned status = 0;
	int r = gnutls_x509_crt_list_verify(&own->crt, 1, cas, n_cas, NULL, 0, 0, &status);

	if (r < 0)
		return error_set(errp, "Unable to verify %s certificate %s against CA certificate %s",
				 own->server ? "server" : "client", own->file, ca_file);
	if (status)
		return error_set(errp, "Our own certificate %s failed validation against %s: %s",
				 own->file, ca_file, tls_check_reason(status));
	return 0;
}

int
tls_check_certs(const char *ca, const char *cert, bool server, struct error **errp)
{
	struct subject own = { .file = cert, .server = server };
	gnutls_x509_crt_t *cas = NULL;
	int n = 0, r = 0;

	if (cert)
		r = load_own(cert, server, &own.crt, errp);
	if (r >= 0)
		r = n = load_cas(ca, &cas, errp);
	if (r >= 0 && cert)
		r = check_one(&own, errp);
	for (int i = 0; r >= 0 && i < n; i++)
		r = check_one(&(struct subject){ .crt = cas[i], .file = ca, .ca = true }, errp);
	if (r >= 0 && cert)
		r = check_pair(&own, cas, n, ca, errp);
	if (own.crt)
		gnutls_x509_crt_deinit(own.crt);
	for (int i = 0; i < n; i++)
		gnutls_x509_crt_deinit(cas[i]);
	gnutls_free(cas);
	return r < 0 ? -1 : 0;
}
