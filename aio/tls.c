/* SPDX-License-Identifier: Apache-2.0 */
/* aio/tls.c - a session: GnuTLS between two buffers.
 *
 * Receiving: what the wire has is taken in bulk, and decrypted from there a
 * record at a time.  Sending: a batch of data is encrypted as a whole and then
 * handed to the wire.  What the wire does not take at once stays in the buffer;
 * the caller is told -EAGAIN, and that its bytes were sent only when the last
 * of them has left.  It comes back with the same bytes, which then are owed to
 * it rather than encrypted anew.
 */
#include "aio/tls.h"

#include <errno.h>
#include <gnutls/x509.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "aio/co.h"
#include "aio/sock.h"
#include "aio/tls_int.h"
#include "aio/work.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"

enum {
	IN_SIZE = 64 << 10,
	BATCH = 128 << 10,	/* of data that is encrypted at a time */
	OUT_STEP = 16 << 10,	/* by which the buffer grows */
	NAME_MAX_SIZE = 4096,	/* of a peer */
};

struct tls {
	struct sock_filter filter;
	gnutls_session_t session;
	struct tls_creds *creds;
	char *hostname;		/* NULL: none is asked for */
	char *peer;		/* tls_peer() */
	struct error *error;	/* of the handshake, in words */

	uint8_t *in, *out;
	size_t in_start, in_end;
	size_t out_start, out_end, out_size;
	size_t owed;		/* the caller's bytes that `out` holds */
	bool at_end;		/* of the wire */
};

static struct tls *
tls_of(struct sock_filter *f)
{
	return CONTAINER_OF(f, struct tls, filter);
}

/* ---- GnuTLS's side of the buffers ---- */

static ssize_t
push(gnutls_transport_ptr_t ptr, const void *data, size_t len)
{
	struct tls *t = ptr;

	if (t->out_size - t->out_end < len) {
		size_t size = t->out_end + len + OUT_STEP;
		uint8_t *p = realloc(t->out, size);

		if (!p) {
			gnutls_transport_set_errno(t->session, ENOMEM);
			return -1;
		}
		t->out = p;
		t->out_size = size;
	}
	memcpy(t->out + t->out_end, data, len);
	t->out_end += len;
	return (ssize_t)len;
}

static ssize_t
pull(gnutls_transport_ptr_t ptr, void *to, size_t len)
{
	struct tls *t = ptr;
	size_t n = min_u64(len, t->in_end - t->in_start);

	if (!n && !t->at_end) {
		gnutls_transport_set_errno(t->session, EAGAIN);
		return -1;
	}
	memcpy(to, t->in + t->in_start, n);
	t->in_start += n;
	return (ssize_t)n;
}

static int
pull_ready(gnutls_transport_ptr_t ptr, unsigned ms)
{
	const struct tls *t = ptr;

	(void)ms;
	return t->in_start < t->in_end || t->at_end;
}

static int
to_errno(ssize_t r)
{
	switch (r) {
	case GNUTLS_E_AGAIN:
	case GNUTLS_E_INTERRUPTED:
		return -EAGAIN;
	case GNUTLS_E_MEMORY_ERROR:
		return -ENOMEM;
	case GNUTLS_E_PREMATURE_TERMINATION:
		return -ECONNRESET;
	default:
		return -EPROTO;
	}
}

/* ---- the wire's side ---- */

/* Send what `out` holds: 0, or -EAGAIN where some is left. */
static int
flush(struct tls *t, struct sock *s)
{
	while (t->out_start < t->out_end) {
		struct iov v = IOV_BUF(t->out + t->out_start, t->out_end - t->out_start);
		ssize_t n = sock_send_wire(s, &v, 0);

		if (n < 0)
			return (int)n;
		t->out_start += (size_t)n;
	}
	t->out_start = t->out_end = 0;
	return 0;
}

/* Take from the wire what it has, unless GnuTLS has not used up what there was: it also
 * ends a call to say that something came that is no data, as a new key. */
static int
fill(struct tls *t, struct sock *s)
{
	ssize_t n;

	co_charge(1);
	if (t->in_start < t->in_end)
		return 0;
	n = sock_recv_wire(s, t->in, IN_SIZE);
	if (n < 0)
		return (int)n;
	t->at_end = n == 0;
	t->in_start = 0;
	t->in_end = (size_t)n;
	return 0;
}

static ssize_t
tls_recv(struct sock_filter *f, struct sock *s, void *buf, size_t len)
{
	struct tls *t = tls_of(f);

	for (;;) {
		ssize_t n = gnutls_record_recv(t->session, buf, len);
		int r = n < 0 ? to_errno(n) : 0;

		if (n >= 0)
			return n;
		if (r == -EAGAIN)
			r = fill(t, s);
		if (r < 0)
			return r;
	}
}

/* Encrypt up to a batch of src, from skip on.  The count of bytes. */
static ssize_t
encrypt(struct tls *t, const struct iov *src, size_t skip)
{
	size_t total = 0;
	ssize_t r = 0;

	gnutls_record_cork(t->session);
	for (int i = 0; i < src->count && total < BATCH && r >= 0; i++) {
		size_t len = src->vec[i].iov_len, n;

		if (skip >= len) {
			skip -= len;
			continue;
		}
		n = min_u64(len - skip, BATCH - total);
		r = gnutls_record_send(t->session, (const uint8_t *)src->vec[i].iov_base + skip, n);
		skip = 0;
		total += n;
	}
	if (r >= 0)
		r = gnutls_record_uncork(t->session, 0);
	return r < 0 ? to_errno(r) : (ssize_t)total;
}

static ssize_t
tls_send(struct sock_filter *f, struct sock *s, const struct iov *src, size_t skip)
{
	struct tls *t = tls_of(f);
	int r = flush(t, s);
	ssize_t sent;

	if (r < 0)
		return r;
	if (!t->owed) {
		ssize_t n = encrypt(t, src, skip);

		if (n < 0)
			return n;
		t->owed = (size_t)n;
		r = flush(t, s);
		if (r < 0)
			return r;
	}
	sent = (ssize_t)t->owed;
	t->owed = 0;
	return sent;
}

static void
tls_free(struct tls *t)
{
	if (t->session)
		gnutls_deinit(t->session);
	tls_creds_unref(t->creds);
	error_free(t->error);
	free(t->hostname);
	free(t->peer);
	free(t->in);
	free(t->out);
	free(t);
}

static void
tls_close(struct sock_filter *f, struct sock *s)
{
	struct tls *t = tls_of(f);

	/* A word of parting, if the wire takes it. */
	if (s && gnutls_bye(t->session, GNUTLS_SHUT_WR) >= 0)
		(void)flush(t, s);
	tls_free(t);
}

/* ---- who is there ---- */

static int
check_dates(gnutls_x509_crt_t crt, struct error **errp)
{
	time_t now = time(NULL);

	if (gnutls_x509_crt_get_expiration_time(crt) < now)
		return error_set(errp, "The certificate has expired");
	if (gnutls_x509_crt_get_activation_time(crt) > now)
		return error_set(errp, "The certificate is not yet activated");
	return 0;
}

/* The peer's own certificate is good: note whose it is. */
static int
note_subject(struct tls *t, gnutls_x509_crt_t crt, struct error **errp)
{
	char name[NAME_MAX_SIZE];
	size_t size = sizeof(name);
	int r = gnutls_x509_crt_get_dn(crt, name, &size);

	if (r < 0)
		return error_set(errp, "Cannot get client distinguished name: %s", gnutls_strerror(r));
	if (!t->creds->server && !t->hostname)
		return error_set(errp, "No hostname for certificate validation");
	if (t->hostname && !gnutls_x509_crt_check_hostname(crt, t->hostname))
		return error_set(errp, "Certificate does not match the hostname %s", t->hostname);
	t->peer = strdup(name);
	return t->peer ? 0 : error_set(errp, "Out of memory");
}

static int
check_certificate(struct tls *t, const gnutls_datum_t *der, bool own, struct error **errp)
{
	gnutls_x509_crt_t crt;
	int r;

	if (gnutls_x509_crt_init(&crt) < 0)
		return error_set(errp, "Out of memory");
	r = gnutls_x509_crt_import(crt, der, GNUTLS_X509_FMT_DER);
	if (r < 0)
		error_set(errp, "Cannot import certificate: %s", gnutls_strerror(r));
	else
		r = check_dates(crt, errp);
	if (r >= 0 && own)
		r = note_subject(t, crt, errp);
	gnutls_x509_crt_deinit(crt);
	return r < 0 ? -1 : 0;
}

static int
verify_x509(struct tls *t, struct error **errp)
{
	unsigned status = 0, n = 0;
	const gnutls_datum_t *list;
	int r;

	r = gnutls_certificate_verify_peers2(t->session, &status);
	if (r < 0)
		return error_set(errp, "Verify failed: %s", gnutls_strerror(r));
	if (status)
		return error_set(errp, "%s", tls_check_reason(status));
	list = gnutls_certificate_get_peers(t->session, &n);
	if (!list || !n)
		return error_set(errp, "No certificate peers");
	for (unsigned i = 0; i < n; i++)
		if (check_certificate(t, &list[i], i == 0, errp) < 0)
			return -1;
	return 0;
}

static int
verify(struct tls *t, struct error **errp)
{
	const char *name = NULL;

	if (t->creds->kind == TLS_X509)
		return t->creds->verify_peer ? verify_x509(t, errp) : 0;
	if (t->creds->kind == TLS_PSK && t->creds->server)
		name = gnutls_psk_server_get_username(t->session);
	if (name && !(t->peer = strdup(name)))
		return error_set(errp, "Out of memory");
	return 0;
}

const char *
tls_peer(const struct sock *s)
{
	struct sock_filter *f = sock_filter(s);

	return f ? tls_of(f)->peer : NULL;
}

/* ---- shaking hands ---- */

/* On a worker thread: as far as it goes with what has arrived.  0, -EAGAIN or
 * -EPROTO with t->error. */
static int
handshake_step(void *arg)
{
	struct tls *t = arg;
	int r;

	do {
		r = gnutls_handshake(t->session);
	} while (r < 0 && r != GNUTLS_E_AGAIN && !gnutls_error_is_fatal(r));
	if (r == GNUTLS_E_AGAIN)
		return -EAGAIN;
	if (r < 0) {
		(void)gnutls_alert_send_appropriate(t->session, r);
		error_set(&t->error, "TLS handshake failed: %s", gnutls_strerror(r));
		return to_errno(r);
	}
	if (verify(t, &t->error) < 0) {
		(void)gnutls_alert_send(t->session, GNUTLS_AL_FATAL, GNUTLS_A_ACCESS_DENIED);
		return -EACCES;
	}
	return 0;
}

static int
flush_all(struct tls *t, struct sock *s)
{
	int r;

	while ((r = flush(t, s)) == -EAGAIN) {
		r = sock_wait(s, SOCK_WRITE, INT64_MAX);
		if (r < 0)
			break;
	}
	return r;
}

static int
fill_some(struct tls *t, struct sock *s)
{
	int r;

	while ((r = fill(t, s)) == -EAGAIN) {
		r = sock_wait(s, SOCK_READ, INT64_MAX);
		if (r < 0)
			break;
	}
	return r;
}

static int
handshake(struct tls *t, struct sock *s)
{
	for (;;) {
		int r = work_run(handshake_step, t), sent = flush_all(t, s);

		if (r != -EAGAIN)
			return r < 0 ? r : sent;
		if (sent >= 0)
			sent = fill_some(t, s);
		if (sent < 0)
			return sent;
	}
}

static int
set_credentials(struct tls *t)
{
	static const gnutls_credentials_type_t types[] = {
		[TLS_X509] = GNUTLS_CRD_CERTIFICATE, [TLS_PSK] = GNUTLS_CRD_PSK,
		[TLS_ANON] = GNUTLS_CRD_ANON,
	};

	return gnutls_credentials_set(t->session, types[t->creds->kind], t->creds->u.any);
}

static int
session_new(struct tls *t, struct error **errp)
{
	bool server = t->creds->server;
	int r = gnutls_init(&t->session, (server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NONBLOCK);

	if (r < 0)
		return error_set(errp, "Cannot initialize TLS session: %s", gnutls_strerror(r));
	r = gnutls_priority_set_direct(t->session, t->creds->priority, NULL);
	if (r < 0)
		return error_set(errp, "Unable to set TLS session priority %s: %s",
				 t->creds->priority, gnutls_strerror(r));
	r = set_credentials(t);
	if (r >= 0 && t->hostname)
		r = gnutls_server_name_set(t->session, GNUTLS_NAME_DNS, t->hostname,
					   strlen(t->hostname));
	if (r < 0)
		return error_set(errp, "Cannot set session credentials: %s", gnutls_strerror(r));
	/* One that shows none is found out when it is verified. */
	if (server && t->creds->kind == TLS_X509)
		gnutls_certificate_server_set_request(t->session, GNUTLS_CERT_REQUEST);
	gnutls_transport_set_ptr(t->session, t);
	gnutls_transport_set_push_function(t->session, push);
	gnutls_transport_set_pull_function(t->session, pull);
	gnutls_transport_set_pull_timeout_function(t->session, pull_ready);
	return 0;
}

static int
tls_new(struct tls_creds *creds, const char *hostname, struct tls **ret, struct error **errp)
{
	struct tls *t = calloc(1, sizeof(*t));

	if (!t)
		return error_set(errp, "Out of memory");
	t->filter = (struct sock_filter){ .recv = tls_recv, .send = tls_send, .close = tls_close };
	t->creds = tls_creds_ref(creds);
	t->in = malloc(IN_SIZE);
	t->hostname = hostname ? strdup(hostname) : NULL;
	if (!t->in || (hostname && !t->hostname)) {
		tls_free(t);
		return error_set(errp, "Out of memory");
	}
	if (session_new(t, errp) < 0) {
		tls_free(t);
		return -1;
	}
	*ret = t;
	return 0;
}

int
tls_start(struct sock *s, struct tls_creds *creds, const char *hostname, struct error **errp)
{
	struct tls *t = NULL;
	int r;

	if (tls_new(creds, hostname, &t, errp) < 0)
		return -EINVAL;
	r = handshake(t, s);
	if (r < 0) {
		if (t->error)
			error_propagate(errp, STEAL(t->error));
		else
			error_set_errno(errp, r, "TLS handshake failed");
		tls_free(t);
		return r;
	}
	sock_set_filter(s, &t->filter);
	return 0;
}
