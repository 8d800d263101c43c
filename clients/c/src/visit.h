/* SPDX-License-Identifier: MIT */
/*
 * One call of a program into the library, from its beginning to its end.
 *
 * In between errno may change and the thread is not cancelled: at its end errno is as before, the connection is
 * given back, and a failure has become the thread's last error. A success leaves the last error alone.
 */
#ifndef QWAVE_VISIT_H
#define QWAVE_VISIT_H

#include "connection.h"

struct visit {
	struct outcome outcome;
	struct connection *connection;
	int errno_before;
	int cancel_before;
};

/* Without a handle. */
void visit_begin(struct visit *visit);

/* With a handle. False: it is bad, or its daemon is gone, and that is the outcome. */
bool visit_enter(struct visit *visit, HANDLE handle);

/* What the call returns. */
BOOL visit_end(struct visit *visit);

/* The call of this visit that a reply of this kind answers, at once. */
struct call visit_call(struct visit *visit, enum reply_kind expected);

/* Send its request and wait for the reply. */
void visit_ask(struct visit *visit, struct call *call, struct request *request);

/* Likewise with a descriptor; `not_open` is the error where it is none. */
void visit_ask_with(struct visit *visit, struct call *call, struct request *request, int descriptor, DWORD not_open);

#endif
