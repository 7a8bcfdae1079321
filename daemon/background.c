/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/background.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"

static int ready_pipe = -1;	/* the child's end */

/* A byte says that the child is ready; the end without one, that it failed. */
__attribute__((noreturn)) static void
wait_for_child(pid_t child, int fd)
{
	int status;
	ssize_t n;
	char c;

	do
		n = read(fd, &c, 1);
	while (n < 0 && errno == EINTR);
	if (n == 1)
		_exit(EXIT_SUCCESS);
	if (waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status))
		_exit(WEXITSTATUS(status));
	_exit(EXIT_FAILURE);
}

int
background_start(struct error **errp)
{
	int fds[2];
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC))
		return error_set_errno(errp, errno, "cannot daemonize");
	pid = fork();
	if (pid < 0) {
		close(fds[0]);
		close(fds[1]);
		return error_set_errno(errp, errno, "cannot daemonize");
	}
	if (pid > 0) {
		close(fds[1]);
		wait_for_child(pid, fds[0]);
	}
	close(fds[0]);
	ready_pipe = fds[1];
	setsid();
	return 0;
}

int
background_ready(struct error **errp)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0)
		return error_set_errno(errp, errno, "cannot daemonize: /dev/null");
	if (chdir("/"))
		return error_set_errno(errp, errno, "cannot daemonize: chdir to /");
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		dup2(null, fd);
	if (null > STDERR_FILENO)
		close(null);
	if (write(ready_pipe, "", 1) != 1)
		return error_set_errno(errp, errno, "cannot daemonize");
	close(ready_pipe);
	return 0;
}
