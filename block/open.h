/* SPDX-License-Identifier: Apache-2.0 */
/* block/open.h - what whoever opens an image hands in, and the refusal.
 *
 * The daemon's promise: no encrypted image ever becomes a node.  A format
 * driver knows that an image *is* encrypted; what it needs to read one is a
 * struct decryptor, which only rescue/ has.  Without one the driver records the
 * layer in the refusal list and goes on opening the rest of the chain, so that
 * one answer names every encrypted layer; then the open fails as a whole and
 * nothing is left of it.
 *
 * Context    loop 0, coroutine.
 */
#ifndef BLOCK_OPEN_H
#define BLOCK_OPEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct node;
struct sock;
struct tls_creds;

/* How an image is encrypted, as its header says. */
enum cipher_kind {
	CIPHER_NONE,
	CIPHER_QCOW_AES,	/* qcow (v1), AES-128-CBC */
	CIPHER_QCOW2_AES,	/* qcow2, crypt_method 1 */
	CIPHER_QCOW2_LUKS,	/* qcow2, crypt_method 2 */
	CIPHER_LUKS,		/* a LUKS volume as the image itself */
};

/* "AES-CBC (qcow2)", ... for people. */
const char *cipher_kind_name(enum cipher_kind kind);

/* What the opener of a layer learns about it, to find its key. */
struct crypt_layer {
	const char *filename;	/* the image file's path */
	const char *node_name;
	const char *format;	/* "qcow", "qcow2", "luks" */
	enum cipher_kind kind;
	const char *header;	/* the path of a LUKS header that is apart; NULL: none */
	struct node *file;	/* the protocol node, for reading a LUKS header */
	uint64_t header_offset;	/* of the LUKS header in file; qcow2: the extension's */
	uint64_t header_length;
	int depth;		/* 0: the image named by the client; 1: its backing ... */
};

/* Decrypts guest data of one layer.  Handed in by rescue/ only. */
struct decryptor {
	/* Find a key for the layer.  0 and *ret_key, or -1 and *errp. */
	int (*unlock)(void *user, const struct crypt_layer *layer, void **ret_key,
		      struct error **errp);
	/* Decrypt in place; len is a multiple of 512.  guest and host are the byte
	 * offsets of buf on the guest disk and in the image file: which of the two
	 * makes the IV depends on the kind. Any thread.  0 or -errno. */
	int (*decrypt)(void *key, uint64_t guest, uint64_t host, void *buf, size_t len);
	void (*forget)(void *key);
};

/* TLS for nodes whose bytes come over a wire, by credentials that their options name.
 * The daemon hands it in once, at its start; whoever does not needs no library for it,
 * and has no credentials. */
struct tls_client {
	/* A reference to the credentials of this id, which are a client's; NULL with
	 * *errp if they are not. */
	struct tls_creds *(*take)(const char *id, struct error **errp);
	void (*drop)(struct tls_creds *creds);	/* any thread; takes NULL */
	/* aio/tls.h: tls_start(). */
	int (*start)(struct sock *s, struct tls_creds *creds, const char *hostname,
		     struct error **errp);
};

void open_set_tls_client(const struct tls_client *client);	/* borrowed for ever */
const struct tls_client *open_tls_client(void);			/* for drivers; not NULL */

/* The first of this id and this name. */
struct open_snapshot {
	const char *id, *name;
};

/* The daemon's rules for opening, from its command line. */
struct open_policy {
	const struct decryptor *decryptor;	/* NULL: encrypted layers are refused */
	void *decryptor_user;
	/* What images may name: NULL list = backing files anywhere, no data files. */
	const char *const *image_dirs;		/* NULL-terminated; confine to these folders */
	bool follow_images;			/* false: what only an image names is not opened */
	/* The top image is opened to be checked (block/check.h): what the check judges
	 * or repairs is no reason to refuse, no guest data will be read, and no
	 * backing file is opened. */
	bool check;
	/* The top image is shown, read-only, as an internal snapshot of it has it; its
	 * driver must have snapshots.  NULL: as it is. */
	const struct open_snapshot *snapshot;
	/* Images that are opened read-only are read once, from end to end, and stay
	 * read-only: each keeps about that many bytes of its tables in memory, and nothing
	 * that only writers or a daemon's commands need.  0: as much as makes it fast. */
	uint64_t table_memory;
};

extern const struct open_policy open_policy_default;	/* no decryptor; follow */

#endif
