/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/key.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/secret.h"

static struct key *
key_new(const void *bytes, size_t len, const char *origin, const char *detail)
{
	struct key *k = secret_alloc(sizeof(*k) + len);

	if (!k)
		return NULL;
	k->len = len;
	memcpy(k->bytes, bytes, len);
	snprintf(k->origin, sizeof(k->origin), "%s%s", origin, detail);
	return k;
}

void
key_free(struct key *k)
{
	secret_free(k);
}

void
key_freep(struct key **k)
{
	key_free(*k);
	*k = NULL;
}

/* Everything up to fd's end: the count, or -errno; -EFBIG if there is more
 * than size - 1. */
static ssize_t
read_all(int fd, uint8_t *buf, size_t size)
{
	size_t len = 0;

	while (len < size) {
		ssize_t n = read(fd, buf + len, size - len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			return len;
		len += n;
	}
	return -EFBIG;
}

static int
read_key(int fd, const char *origin, const char *detail, struct key **ret, struct error **errp)
{
	CLEANUP(secret_freep) uint8_t *buf = secret_alloc(KEY_MAX + 1);
	ssize_t len;

	if (!buf)
		return error_set(errp, "Cannot allocate memory for a key");
	len = read_all(fd, buf, KEY_MAX + 1);
	if (len == -EFBIG)
		return error_set(errp, "Cannot use %s%s: longer than %d bytes, which no key is",
				 origin, detail, KEY_MAX);
	if (len < 0) {
		error_set_errno(errp, len, "Cannot read %s%s", origin, detail);
		return -1;
	}
	if (!len)
		return error_set(errp, "Cannot use %s%s: it is empty", origin, detail);
	*ret = key_new(buf, len, origin, detail);
	if (!*ret)
		return error_set(errp, "Cannot allocate memory for a key");
	return 0;
}

int
key_read_file(const char *path, struct key **ret, struct error **errp)
{
	CLEANUP(cleanup_close) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);

	if (fd < 0) {
		error_set_errno(errp, errno, "Cannot open the key file %s", path);
		return -1;
	}
	return read_key(fd, "the key file ", path, ret, errp);
}

int
key_read_fd(int fd, struct key **ret, struct error **errp)
{
	char number[16];

	snprintf(number, sizeof(number), "%d", fd);
	return read_key(fd, "the key from file descriptor ", number, ret, errp);
}

int
key_variant(const struct key *k, struct key **ret, struct error **errp)
{
	bool newline = k->len && k->bytes[k->len - 1] == '\n';
	struct key *v = secret_alloc(sizeof(*v) + k->len + 1);

	if (!v)
		return error_set(errp, "Cannot allocate memory for a key");
	memcpy(v->bytes, k->bytes, k->len);
	v->bytes[k->len] = '\n';
	v->len = newline ? k->len - 1 : k->len + 1;
	snprintf(v->origin, sizeof(v->origin), "%.200s (%s)", k->origin,
		 newline ? "without the newline at its end" : "with a newline added");
	*ret = v;
	return 0;
}

/* ---- the prompt ---- */

static const int prompt_signals[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP };
static volatile sig_atomic_t prompt_signal;

static void
on_signal(int signo)
{
	prompt_signal = signo;
}

/* One line from a terminal that does not echo.  The count, -errno, or -EINTR
 * with prompt_signal set. */
static ssize_t
read_line(int tty, uint8_t *buf, size_t size)
{
	struct sigaction act = { .sa_handler = on_signal }, old[ARRAY_SIZE(prompt_signals)];
	struct termios before, quiet;
	ssize_t len = 0;

	if (tcgetattr(tty, &before) < 0)
		return -errno;
	sigemptyset(&act.sa_mask);
	prompt_signal = 0;
	/* No SA_RESTART: a signal ends the read.  Ignored ones stay ignored. */
	for (size_t i = 0; i < ARRAY_SIZE(prompt_signals); i++) {
		sigaction(prompt_signals[i], NULL, &old[i]);
		if (old[i].sa_handler != SIG_IGN)
			sigaction(prompt_signals[i], &act, NULL);
	}
	quiet = before;
	quiet.c_lflag &= ~(ECHO | ECHOE | ECHOK | ECHONL);
	quiet.c_lflag |= ICANON | ISIG;
	if (tcsetattr(tty, TCSAFLUSH, &quiet) < 0)
		len = -errno;

	while (len >= 0 && (size_t)len < size && !prompt_signal) {
		ssize_t n = read(tty, buf + len, 1);

		if (n < 0)
			len = errno == EINTR && !prompt_signal ? len : -errno;
		else if (!n || buf[len] == '\n')
			break;
		else
			len++;
	}
	(void)tcsetattr(tty, TCSAFLUSH, &before);
	for (size_t i = 0; i < ARRAY_SIZE(prompt_signals); i++)
		sigaction(prompt_signals[i], &old[i], NULL);
	return prompt_signal ? -EINTR : len;
}

static void
say(int tty, const char *text)
{
	ssize_t n = write(tty, text, strlen(text));

	(void)n;	/* a terminal that takes no prompt may still give an answer */
}

int
key_prompt(const char *question, struct key **ret, struct error **errp)
{
	CLEANUP(cleanup_close) int tty = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
	CLEANUP(secret_freep) uint8_t *buf = secret_alloc(4096);
	ssize_t len;

	if (tty < 0) {
		error_set_errno(errp, errno, "Cannot ask for the password, there is no terminal");
		return -1;
	}
	if (!buf)
		return error_set(errp, "Cannot allocate memory for a key");
	do {
		say(tty, question);
		len = read_line(tty, buf, 4096);
		say(tty, "\n");
		/* Now that the terminal is as it was, let the signal do what it does:
		 * end the program, or stop it until it is continued. */
		if (prompt_signal)
			raise(prompt_signal);
	} while (len == -EINTR);
	if (len < 0) {
		error_set_errno(errp, len, "Cannot read the password from the terminal");
		return -1;
	}
	if (!len)
		return error_set(errp, "No password was given");
	*ret = key_new(buf, len, "the password", "");
	if (!*ret)
		return error_set(errp, "Cannot allocate memory for a key");
	return 0;
}
