/* SPDX-License-Identifier: MIT */
/* The socket to the daemon; see transport.h. */
#define _GNU_SOURCE /* secure_getenv() */
#include "transport.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_PATH  "/run/qos2/qos2.sock"
#define PATH_VARIABLE "QOS2_SOCKET"
/* So much of a path is told in an error. */
#define TOLD_PATH_BYTES 200
/* 0 to 2 may be closed in this process, and whoever writes there must not write to the daemon. */
#define FIRST_DESCRIPTOR 3

int64_t transport_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

const char *transport_path(void)
{
	const char *path = secure_getenv(PATH_VARIABLE);

	return path == NULL || path[0] == '\0' ? DEFAULT_PATH : path;
}

static bool is_shortage(int error)
{
	return error == ENOMEM || error == ENOBUFS;
}

static int fail_to_make(struct outcome *outcome)
{
	if (is_shortage(errno))
		outcome_fail(outcome, ERROR_NOT_ENOUGH_MEMORY, NULL);
	else if (errno == EMFILE || errno == ENFILE)
		outcome_fail(outcome, ERROR_NO_SYSTEM_RESOURCES, "no descriptor is left (raise the limit: ulimit -n)");
	else
		outcome_fail(outcome, ERROR_SERVICE_DEPENDENCY_FAIL, "this process cannot make AF_UNIX sockets");
	return -1;
}

int transport_socket(struct outcome *outcome)
{
	const struct timeval limit = {
		.tv_sec = TRANSPORT_TIMEOUT_NS / 1000000000,
		.tv_usec = TRANSPORT_TIMEOUT_NS % 1000000000 / 1000,
	};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return fail_to_make(outcome);
	if (fd < FIRST_DESCRIPTOR) {
		int low = fd;

		fd = fcntl(low, F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR);
		close(low);
		if (fd < 0)
			return fail_to_make(outcome);
	}
	/* They bound connect() and a direct recv(); everything else asks poll() first. */
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	return fd;
}

static void fail_to_connect(struct outcome *outcome, const char *path, int error)
{
	char text[OUTCOME_TEXT_BYTES];
	const char *reason = "it cannot be reached";

	if (is_shortage(error)) {
		outcome_fail(outcome, ERROR_NOT_ENOUGH_MEMORY, NULL);
		return;
	}
	if (error == EACCES || error == EPERM) {
		snprintf(text, sizeof(text), "no access to %.*s (the daemon's socket_mode says who may connect)",
			 TOLD_PATH_BYTES, path);
		outcome_fail(outcome, ERROR_ACCESS_DENIED, text);
		return;
	}
	if (error == ENOENT)
		reason = "nothing is there";
	else if (error == ECONNREFUSED)
		reason = "nobody listens";
	else if (error == EAGAIN)
		reason = "it does not answer";
	else if (error == ENAMETOOLONG)
		reason = "the path is too long";
	snprintf(text, sizeof(text), "no daemon at %.*s: %s (start qos2d, or name its socket in $%s)", TOLD_PATH_BYTES,
		 path, reason, PATH_VARIABLE);
	outcome_fail(outcome, ERROR_SERVICE_DEPENDENCY_FAIL, text);
}

bool transport_connect(int fd, const char *path, int64_t deadline_ns, struct outcome *outcome)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t bytes = strlen(path);

	if (bytes >= sizeof(address.sun_path)) {
		fail_to_connect(outcome, path, ENAMETOOLONG);
		return false;
	}
	memcpy(address.sun_path, path, bytes);
	/* Where a signal comes first, an AF_UNIX socket is as before. */
	while (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
		if (errno != EINTR || transport_now_ns() >= deadline_ns) {
			fail_to_connect(outcome, path, errno == EINTR ? EAGAIN : errno);
			return false;
		}
	}
	return true;
}

/*
 * Wait for `events` or the end of the connection. False: the time is over. Where poll() is not allowed (it needs
 * one descriptor below RLIMIT_NOFILE, which sandboxes set to 0), the next attempt must wait by itself: `*direct`.
 */
static bool ready(int fd, short events, int64_t deadline_ns, bool *direct)
{
	struct pollfd watched = {.fd = fd, .events = events};
	int timeout_ms = -1, found;

	do {
		if (deadline_ns != TRANSPORT_NEVER) {
			int64_t left_ns = deadline_ns - transport_now_ns();

			if (left_ns <= 0)
				return false;
			/* Rounded up: a wait of 0 ms would be none. */
			timeout_ms = (int)((left_ns + 999999) / 1000000);
		}
		found = poll(&watched, 1, timeout_ms);
	} while (found == 0 || (found < 0 && errno == EINTR));
	*direct = found < 0;
	return true;
}

enum transport_result transport_send(int fd, const char *message, size_t bytes, int descriptor, int64_t deadline_ns)
{
	union {
		struct cmsghdr aligned;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = {.iov_base = (void *)(uintptr_t)message, .iov_len = bytes};
	struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1};
	bool direct = false;

	if (descriptor >= 0) {
		struct cmsghdr *rights = &control.aligned;

		memset(&control, 0, sizeof(control));
		packet.msg_control = control.bytes;
		packet.msg_controllen = sizeof(control.bytes);
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(rights), &descriptor, sizeof(int));
	}
	while (sendmsg(fd, &packet, MSG_NOSIGNAL | (direct ? 0 : MSG_DONTWAIT)) < 0) {
		if (errno == EAGAIN) {
			if (!ready(fd, POLLOUT, deadline_ns, &direct))
				return TRANSPORT_LATE;
		} else if (descriptor >= 0 && (errno == EBADF || errno == EINVAL)) {
			/* EINVAL is for descriptors that cannot be passed: io_uring's. */
			return TRANSPORT_REFUSED;
		} else if (errno == ETOOMANYREFS) {
			return TRANSPORT_NO_ROOM;
		} else if (is_shortage(errno)) {
			return TRANSPORT_NO_MEMORY;
		} else if (errno != EINTR) {
			return TRANSPORT_LOST;
		}
	}
	return TRANSPORT_DONE;
}

/*
 * What lies behind an end that was just told. A recv() that does not wait may find no message, then the daemon sends
 * its last words and closes, then the same recv() sees that and tells the end (unix_dgram_recvmsg() of Linux).
 */
static enum transport_result last_words(int fd, char *buffer, size_t room, size_t *bytes)
{
	ssize_t got;

	do {
		got = recv(fd, buffer, room, MSG_TRUNC | MSG_DONTWAIT);
	} while (got < 0 && (errno == EINTR || errno == ECONNRESET));
	if (got <= 0 || (size_t)got > room)
		return TRANSPORT_LOST;
	*bytes = (size_t)got;
	return TRANSPORT_DONE;
}

/* One attempt. TRANSPORT_LATE: no message, errno says why. */
static enum transport_result take(int fd, char *buffer, size_t room, int flags, size_t *bytes)
{
	/* MSG_TRUNC: the length that the message had. Descriptors with it are not taken, the kernel closes them. */
	ssize_t got = recv(fd, buffer, room, MSG_TRUNC | flags);

	if (got < 0)
		return TRANSPORT_LATE;
	if (got == 0)
		return last_words(fd, buffer, room, bytes);
	if ((size_t)got > room)
		return TRANSPORT_LOST;
	*bytes = (size_t)got;
	return TRANSPORT_DONE;
}

enum transport_result transport_look(int fd, char *buffer, size_t room, int64_t until_ns, size_t *bytes)
{
	enum transport_result result;

	do {
		result = take(fd, buffer, room, MSG_DONTWAIT, bytes);
	} while (result == TRANSPORT_LATE && (errno == EINTR || errno == EAGAIN) && transport_now_ns() < until_ns);
	return result;
}

enum transport_result transport_receive(int fd, char *buffer, size_t room, int64_t deadline_ns, bool direct,
					size_t *bytes)
{
	for (;;) {
		enum transport_result result = take(fd, buffer, room, direct ? 0 : MSG_DONTWAIT, bytes);

		if (result != TRANSPORT_LATE)
			return result;
		if (errno == ECONNRESET) {
			/* Told once, and before the last words of a daemon that left requests unread. */
			direct = false;
			continue;
		}
		if (errno != EINTR && errno != EAGAIN)
			return TRANSPORT_LOST;
		if (!ready(fd, POLLIN, deadline_ns, &direct))
			return TRANSPORT_LATE;
	}
}
