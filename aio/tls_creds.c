/* SPDX-License-Identifier: Apache-2.0 */
/* aio/tls_creds.c - credentials, from their files. */
#include "aio/tls_creds.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "aio/tls_int.h"
#include "aio/work.h"
#include "base/cleanup.h"
#include "base/error.h"

/* Old versions have known weaknesses; who needs one can name it. */
#define DEFAULT_PRIORITY "NORMAL:-VERS-TLS1.0:-VERS-TLS1.1"
/* With a pre-shared key TLS 1.3 leaves the choice between ChaCha20 and AES-128, and GnuTLS
 * would take the former, which costs several times as much where the CPU knows AES. */
#define AES_FIRST ":-CHACHA20-POLY1305:+CHACHA20-POLY1305:%SERVER_PRECEDENCE"

static const char *const more_priority[] = {
	[TLS_X509] = "",
	[TLS_PSK] = ":+ECDHE-PSK:+DHE-PSK:+PSK",
	[TLS_ANON] = ":+ANON-DH",
};

static const char *
default_priority(void)
{
#if defined(__x86_64__) || defined(__i386__)
	if (__builtin_cpu_supports("aes"))
		return DEFAULT_PRIORITY AES_FIRST;
#endif
	return DEFAULT_PRIORITY;
}

struct tls_creds *
tls_creds_ref(struct tls_creds *c)
{
	atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
	return c;
}

static void
free_gnutls(struct tls_creds *c)
{
	if (!c->u.any)
		return;
	if (c->kind == TLS_X509)
		gnutls_certificate_free_credentials(c->u.x509);
	else if (c->kind == TLS_PSK && c->server)
		gnutls_psk_free_server_credentials(c->u.psk_server);
	else if (c->kind == TLS_PSK)
		gnutls_psk_free_client_credentials(c->u.psk_client);
	else if (c->server)
		gnutls_anon_free_server_credentials(c->u.anon_server);
	else
		gnutls_anon_free_client_credentials(c->u.anon_client);
}

void
tls_creds_unref(struct tls_creds *c)
{
	if (!c || atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) > 1)
		return;
	free_gnutls(c);
	if (c->dh)
		gnutls_dh_params_deinit(c->dh);
	free(c->priority);
	free(c->exposed);
	free(c);
}

bool
tls_creds_is_server(const struct tls_creds *c)
{
	return c->server;
}

const char *
tls_creds_exposed(const struct tls_creds *c)
{
	return c->exposed;
}

/* ---- files ---- */

/* The path of a file; NULL and 0 for one that is not there and need not be.  It is
 * the caller's. */
static int
find(const struct tls_config *cfg, const char *name, bool needed, char **ret,
     struct error **errp)
{
	CLEANUP(cleanup_free) char *path = NULL;
	struct stat st;

	*ret = NULL;
	if (!cfg->dir)
		return needed ? error_set(errp, "Missing 'dir' property value") : 0;
	if (asprintf(&path, "%s/%s", cfg->dir, name) < 0) {
		path = NULL;
		return error_set(errp, "Out of memory");
	}
	if (stat(path, &st) < 0) {
		if (errno == ENOENT && !needed)
			return 0;
		error_set_errno(errp, errno, "Unable to access credentials %s", path);
		return -1;
	}
	*ret = STEAL(path);
	return 0;
}

static void
note_exposed(struct tls_creds *c, const char *path)
{
	struct stat st;

	if (path && !c->exposed && stat(path, &st) == 0 && st.st_mode & S_IROTH)
		c->exposed = strdup(path);
}

/* Without a file, GnuTLS's parameters of RFC 7919 do. */
static int
load_dh(struct tls_creds *c, const char *path, struct error **errp)
{
	gnutls_datum_t data = { NULL, 0 };
	int r;

	if (!path)
		return 0;
	r = gnutls_load_file(path, &data);
	if (r >= 0)
		r = gnutls_dh_params_init(&c->dh);
	if (r >= 0)
		r = gnutls_dh_params_import_pkcs3(c->dh, &data, GNUTLS_X509_FMT_PEM);
	gnutls_free(data.data);
	if (r < 0)
		return error_set(errp, "Unable to load DH parameters from %s: %s", path,
				 gnutls_strerror(r));
	return 0;
}

/* ---- certificates ---- */

struct x509_files {
	char *ca, *crl, *cert, *key, *dh;
};

static void
x509_files_done(struct x509_files *f)
{
	free(f->ca);
	free(f->crl);
	free(f->cert);
	free(f->key);
	free(f->dh);
}

static int
find_x509(const struct tls_config *cfg, struct x509_files *f, struct error **errp)
{
	if (find(cfg, "ca-cert.pem", true, &f->ca, errp) < 0)
		return -1;
	/* A client need not show who it is. */
	if (!cfg->server)
		return find(cfg, "client-cert.pem", false, &f->cert, errp) < 0 ||
		       find(cfg, "client-key.pem", false, &f->key, errp) < 0 ? -1 : 0;
	return find(cfg, "ca-crl.pem", false, &f->crl, errp) < 0 ||
	       find(cfg, "server-cert.pem", true, &f->cert, errp) < 0 ||
	       find(cfg, "server-key.pem", true, &f->key, errp) < 0 ||
	       find(cfg, "dh-params.pem", false, &f->dh, errp) < 0 ? -1 : 0;
}

static int
set_x509(struct tls_creds *c, const struct x509_files *f, struct error **errp)
{
	int r = gnutls_certificate_set_x509_trust_file(c->u.x509, f->ca, GNUTLS_X509_FMT_PEM);

	if (r < 0)
		return error_set(errp, "Cannot load CA certificate '%s': %s", f->ca,
				 gnutls_strerror(r));
	if (f->cert && f->key) {
		r = gnutls_certificate_set_x509_key_file2(c->u.x509, f->cert, f->key,
							  GNUTLS_X509_FMT_PEM, NULL, 0);
		if (r < 0)
			return error_set(errp, "Cannot load certificate '%s' & key '%s': %s",
					 f->cert, f->key, gnutls_strerror(r));
	}
	if (f->crl) {
		r = gnutls_certificate_set_x509_crl_file(c->u.x509, f->crl, GNUTLS_X509_FMT_PEM);
		if (r < 0)
			return error_set(errp, "Cannot load CRL '%s': %s", f->crl,
					 gnutls_strerror(r));
	}
	if (load_dh(c, f->dh, errp) < 0)
		return -1;
	if (c->dh)
		gnutls_certificate_set_dh_params(c->u.x509, c->dh);
	return 0;
}

static int
load_x509(struct tls_creds *c, const struct tls_config *cfg, struct error **errp)
{
	CLEANUP(x509_files_done) struct x509_files f = { 0 };

	if (find_x509(cfg, &f, errp) < 0)
		return -1;
	if (cfg->sanity_check && tls_check_certs(f.ca, f.cert, cfg->server, errp) < 0)
		return -1;
	if (gnutls_certificate_allocate_credentials(&c->u.x509) < 0)
		return error_set(errp, "Out of memory");
	note_exposed(c, f.key);
	return set_x509(c, &f, errp);
}

/* ---- keys ---- */

/* The key of a user, in hexadecimal, from lines "user:key"; the caller's. */
static int
look_up_key(const char *path, const char *user, char **ret, struct error **errp)
{
	CLEANUP(cleanup_free) char *line = NULL;
	size_t size = 0, n = strlen(user);
	FILE *f = fopen(path, "re");
	bool found = false;

	if (!f) {
		error_set_errno(errp, errno, "Cannot read PSK file %s", path);
		return -1;
	}
	while (!found && getline(&line, &size, f) >= 0)
		found = !strncmp(line, user, n) && line[n] == ':';
	fclose(f);
	if (!found)
		return error_set(errp, "Username %s not found in PSK file %s", user, path);
	line[n + 1 + strcspn(line + n + 1, "\r\n")] = '\0';
	*ret = strdup(line + n + 1);
	return *ret ? 0 : error_set(errp, "Out of memory");
}

static int
load_psk_client(struct tls_creds *c, const struct tls_config *cfg, const char *path,
		struct error **errp)
{
	const char *user = cfg->username ? cfg->username : "qemu";
	CLEANUP(cleanup_free) char *key = NULL;
	gnutls_datum_t d;
	int r;

	if (look_up_key(path, user, &key, errp) < 0)
		return -1;
	if (gnutls_psk_allocate_client_credentials(&c->u.psk_client) < 0)
		return error_set(errp, "Out of memory");
	d.data = (unsigned char *)key;
	d.size = (unsigned)strlen(key);
	r = gnutls_psk_set_client_credentials(c->u.psk_client, user, &d, GNUTLS_PSK_KEY_HEX);
	explicit_bzero(key, d.size);
	if (r < 0)
		return error_set(errp, "Cannot set PSK client credentials: %s", gnutls_strerror(r));
	return 0;
}

static int
load_psk_server(struct tls_creds *c, const char *path, const char *dh, struct error **errp)
{
	int r;

	if (gnutls_psk_allocate_server_credentials(&c->u.psk_server) < 0)
		return error_set(errp, "Out of memory");
	if (load_dh(c, dh, errp) < 0)
		return -1;
	r = gnutls_psk_set_server_credentials_file(c->u.psk_server, path);
	if (r < 0)
		return error_set(errp, "Cannot set PSK server credentials: %s", gnutls_strerror(r));
	if (c->dh)
		gnutls_psk_set_server_dh_params(c->u.psk_server, c->dh);
	else
		gnutls_psk_set_server_known_dh_params(c->u.psk_server, GNUTLS_SEC_PARAM_MEDIUM);
	return 0;
}

static int
load_psk(struct tls_creds *c, const struct tls_config *cfg, struct error **errp)
{
	CLEANUP(cleanup_free) char *path = NULL, *dh = NULL;

	if (cfg->server && cfg->username)
		return error_set(errp, "username should not be set when endpoint=server");
	if ((cfg->server && find(cfg, "dh-params.pem", false, &dh, errp) < 0) ||
	    find(cfg, "keys.psk", true, &path, errp) < 0)
		return -1;
	note_exposed(c, path);
	return cfg->server ? load_psk_server(c, path, dh, errp) : load_psk_client(c, cfg, path, errp);
}

/* ---- nobody ---- */

static int
load_anon(struct tls_creds *c, const struct tls_config *cfg, struct error **errp)
{
	CLEANUP(cleanup_free) char *dh = NULL;

	if (!cfg->server)
		return gnutls_anon_allocate_client_credentials(&c->u.anon_client) < 0
			       ? error_set(errp, "Out of memory") : 0;
	if (find(cfg, "dh-params.pem", false, &dh, errp) < 0)
		return -1;
	if (gnutls_anon_allocate_server_credentials(&c->u.anon_server) < 0)
		return error_set(errp, "Out of memory");
	if (load_dh(c, dh, errp) < 0)
		return -1;
	if (c->dh)
		gnutls_anon_set_server_dh_params(c->u.anon_server, c->dh);
	else
		gnutls_anon_set_server_known_dh_params(c->u.anon_server, GNUTLS_SEC_PARAM_MEDIUM);
	return 0;
}

/* ---- all kinds ---- */

struct load {
	const struct tls_config *config;
	struct tls_creds *creds;
	struct error **errp;
};

static int
load(void *arg)
{
	static int (*const by_kind[])(struct tls_creds *c, const struct tls_config *cfg,
				      struct error **errp) = {
		[TLS_X509] = load_x509, [TLS_PSK] = load_psk, [TLS_ANON] = load_anon,
	};
	struct load *l = arg;

	return by_kind[l->config->kind](l->creds, l->config, l->errp);
}

int
tls_creds_load(const struct tls_config *config, struct tls_creds **ret, struct error **errp)
{
	struct tls_creds *c = calloc(1, sizeof(*c));
	struct load l = { config, c, errp };

	if (!c)
		return error_set(errp, "Out of memory");
	atomic_init(&c->refs, 1);
	c->kind = config->kind;
	c->server = config->server;
	c->verify_peer = config->verify_peer;
	if (asprintf(&c->priority, "%s%s", config->priority ? config->priority : default_priority(),
		     more_priority[config->kind]) < 0) {
		c->priority = NULL;
		tls_creds_unref(c);
		return error_set(errp, "Out of memory");
	}
	if (work_run(load, &l) < 0) {
		tls_creds_unref(c);
		return -1;
	}
	*ret = c;
	return 0;
}
