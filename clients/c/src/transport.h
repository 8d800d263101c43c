/* SPDX-License-Identifier: MIT */
/*
 * The socket to the daemon: connecting, sending, receiving, each up to a point in time.
 *
 * Signals interrupt nothing here: what they cut short goes on with the time that is left. SIGPIPE is never raised.
 */
#ifndef QWAVE_TRANSPORT_H
#define QWAVE_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "outcome.h"

/* How long the daemon may take for a call that it answers at once. A test builds the library with less. */
#ifndef TRANSPORT_TIMEOUT_NS
#define TRANSPORT_TIMEOUT_NS (10 * INT64_C(1000000000))
#endif
/* As a point in time: waits as long as it takes. */
#define TRANSPORT_NEVER INT64_MAX

enum transport_result {
	TRANSPORT_DONE,
	TRANSPORT_LATE,	     /* the time is over */
	TRANSPORT_LOST,	     /* the daemon is gone; its last words may be there to receive */
	TRANSPORT_NO_MEMORY, /* of the kernel's */
	TRANSPORT_NO_ROOM,   /* too many descriptors of this user are under way */
	TRANSPORT_REFUSED    /* the descriptor to send is none */
};

/* CLOCK_MONOTONIC in ns. */
int64_t transport_now_ns(void);

/* Where the daemon is: $QOS2_SOCKET (not in programs with raised privileges), else /run/qos2/qos2.sock. */
const char *transport_path(void);

/* A socket, above descriptor 2, closed on exec; or -1 with `outcome` failed. It is not connected yet. */
int transport_socket(struct outcome *outcome);

/* Connect to `path`. False: `outcome` failed. */
bool transport_connect(int fd, const char *path, int64_t deadline_ns, struct outcome *outcome);

/* Send one message, with `descriptor` unless that is negative. Anything but TRANSPORT_DONE: nothing was sent. */
enum transport_result transport_send(int fd, const char *message, size_t bytes, int descriptor, int64_t deadline_ns);

/*
 * Look for a message until then, without falling asleep. TRANSPORT_LATE: transport_receive() has to find out why there
 * is none.
 */
enum transport_result transport_look(int fd, char *buffer, size_t room, int64_t until_ns, size_t *bytes);

/*
 * Receive one message of at most `room` bytes; a longer one counts as a lost connection. With `direct` the first
 * attempt waits within recv(), which saves a system call and is as late as TRANSPORT_TIMEOUT_NS from now at worst.
 */
enum transport_result transport_receive(int fd, char *buffer, size_t room, int64_t deadline_ns, bool direct,
					size_t *bytes);

#endif
