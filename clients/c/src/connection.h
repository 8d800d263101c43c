/* SPDX-License-Identifier: MIT */
/*
 * One connection to the daemon, which is one handle: calls of many threads under way at the same time.
 *
 * Strategy: leader and followers. Whoever waits for a reply receives for all while nobody else does; replies are
 * put into the calls that they answer, whose threads are woken; who has his own reply hands the receiving over to
 * another one that waits, else to the helper thread, which lives only while calls are pending that no thread waits
 * for. So a lone thread costs one send and one receive per call, and no reply waits for a thread that is busy.
 * The lock is never held while the socket may block.
 */
#ifndef QWAVE_CONNECTION_H
#define QWAVE_CONNECTION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "outcome.h"
#include "reply.h"
#include "request.h"
#include "vigil.h"

struct connection;

/* Flow ids of all pages of one enumeration. */
struct id_list {
	uint32_t *ids;
	size_t count;
	size_t capacity;
};

/*
 * A call under way. Its maker sets the fields of the first group. One that a thread waits for lies on that
 * thread's stack.
 */
struct call {
	enum reply_kind expected;
	int64_t deadline_ns;
	struct outcome *outcome;
	struct id_list *ids;	 /* where those of a REPLY_FLOW_IDS are added */
	LPOVERLAPPED overlapped; /* NULL: a thread waits for it */
	/* Of one that no thread waits for: it is complete; it is to be forgotten, in a forked child. */
	void (*completed)(struct connection *connection, struct call *call);
	void (*abandoned)(struct call *call);

	uint64_t id;
	bool done;
	struct reply reply; /* where the outcome is a success; what it points to is gone */
	bool asleep;
	pthread_cond_t wake;
	struct call *newer, *older;
};

enum connection_state {
	CONNECTION_OPEN,
	CONNECTION_CLOSING,
	CONNECTION_LOST
};

enum helper_state {
	HELPER_NONE,
	HELPER_RUNNING,
	HELPER_ENDED /* its thread is to be joined */
};

struct connection {
	atomic_uint references;
	atomic_int state; /* enum connection_state, changed under the lock */
	int fd;
	pthread_mutex_t lock;
	/* All below under the lock, but for the buffer and the vigil, which are the receiving thread's. */
	bool receiving;
	uint64_t last_id;
	struct call *newest;	  /* the pending ones */
	unsigned int unattended;  /* how many of them no thread waits for */
	unsigned int beginning;	  /* overlapped calls whose beginner has not returned yet */
	pthread_cond_t completed; /* one of the unattended is complete */
	enum helper_state helper;
	pthread_t helper_thread;
	pthread_cond_t helper_wake;
	struct vigil vigil;
	char buffer[REPLY_BYTES];
};

/* A connection that is not connected, with one reference. NULL: no memory. */
struct connection *connection_new(void);

/* Connect and open the handle. False: `outcome` failed; the caller still has its reference. */
bool connection_open(struct connection *connection, struct outcome *outcome);

/* Close the handle: when this returns its flows have ended, and all calls under way are complete. */
void connection_close(struct connection *connection);

/* One user less; the last one closes the socket and frees the memory. */
void connection_release(struct connection *connection);

/* In a forked child: give up what the parent goes on using. Called with the lock held; frees the memory. */
void connection_abandon(struct connection *connection);

/* Make a call pending and number it, so that its request can be written. False: its outcome failed. */
bool connection_enlist(struct connection *connection, struct call *call);

/*
 * Send the request of a pending call, with `descriptor` unless that is negative; `not_open` is the error where that
 * is no descriptor. Failure completes the call.
 */
void connection_send(struct connection *connection, struct call *call, const struct request *request, int descriptor,
		     DWORD not_open);

/* Return when the call, which was sent, is complete. */
void connection_await(struct connection *connection, struct call *call);

/* With the lock held: receive one message and deliver it, or find the connection lost. Nobody else is receiving. */
void connection_receive(struct connection *connection, int64_t deadline_ns, bool direct);

/* With the lock held and nobody receiving: wake one that waits, so that it receives. */
void connection_hand_over(struct connection *connection);

/* With the lock held: the pending call that completes `overlapped`, or NULL. */
struct call *connection_find(struct connection *connection, const OVERLAPPED *overlapped);

/* connection_enlist() with the lock held, and the way back before its request is sent. */
bool connection_enlist_locked(struct connection *connection, struct call *call);
void connection_withdraw(struct connection *connection, struct call *call);

#endif
