/* SPDX-License-Identifier: MIT */
/* Where a call writes its result: the Size and Buffer of QOSQueryFlow and QOSNotifyFlow, and their rules. */
#ifndef QWAVE_ANSWER_H
#define QWAVE_ANSWER_H

#include "connection.h"

enum answer_kind {
	ANSWER_NOTHING,
	ANSWER_FUNDAMENTALS, /* QOS_FLOW_FUNDAMENTALS */
	ANSWER_PRIORITY,     /* QOS_PACKET_PRIORITY */
	ANSWER_RATE,	     /* UINT64 */
	ANSWER_AVAILABLE     /* nothing is written, but Size was to be that of a UINT64 */
};

struct answer {
	enum answer_kind kind;
	PULONG size;
	PVOID buffer;
	ULONG room; /* *size when the call began */
};

/* How many bytes the buffer must have. */
ULONG answer_bytes(enum answer_kind kind);

/* Whether the buffer is too small for what it is for. */
bool answer_lacks_room(const struct answer *answer);

/*
 * Write the result of a call that is complete, or turn it into ERROR_INSUFFICIENT_BUFFER: that hides success, and of
 * the errors those that a later call would not meet (ERROR_NO_DATA, ERROR_RETRY), so that what is needed can be
 * asked before there are data. Returns the bytes written.
 */
ULONG answer_settle(const struct answer *answer, struct outcome *outcome, const struct reply *reply);

#endif
