/* SPDX-License-Identifier: MIT */
/*
 * Calls with an OVERLAPPED: begun by one thread, completed by whichever receives the reply.
 *
 * The order of what a program sees: Size and Buffer are written, then InternalHigh, then Internal (by a release
 * store), then the event. Nothing of the OVERLAPPED is touched behind the store to Internal, and the event is a
 * duplicate, so the program may free the one and close the other as soon as it knows.
 */
#ifndef QWAVE_OVERLAPPED_H
#define QWAVE_OVERLAPPED_H

#include "answer.h"
#include "visit.h"

/* A call that the program waits for in its own way. */
struct operation {
	struct call call; /* the first member: a pointer to it is one to the operation */
	struct outcome outcome;
	struct answer answer;
	int event;	/* duplicate of hEvent, or -1 */
	bool beginning; /* its beginner has not returned yet, and settles it if it is complete by then */
};

/*
 * Make the operation for `overlapped` pending: its event is emptied, its Internal STATUS_PENDING. NULL: the outcome of
 * the visit is a failure, and the OVERLAPPED is as it was. Its request is then to be written and begun.
 */
struct operation *overlapped_enlist(struct visit *visit, LPOVERLAPPED overlapped, enum reply_kind expected,
				    const struct answer *answer);

/*
 * Send the request, and return when the daemon has looked at it. What is complete by then is the outcome of the
 * visit; otherwise that is ERROR_IO_PENDING.
 */
void overlapped_begin(struct visit *visit, struct operation *operation, struct request *request, QOS_FLOWID flow);

/*
 * For a call that completes at once whatever OVERLAPPED it has (NULL is allowed): before it is made. False: the
 * outcome of the visit is a failure.
 */
bool overlapped_prepare(struct visit *visit, LPOVERLAPPED overlapped, int *event);

/* And when it has been made, with the bytes written: a success is signalled. */
void overlapped_finish(const struct visit *visit, LPOVERLAPPED overlapped, int event, ULONG bytes);

/* Cancel what is pending with `overlapped`. */
void overlapped_cancel(struct visit *visit, LPOVERLAPPED overlapped);

#endif
