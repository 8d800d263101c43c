/* SPDX-License-Identifier: MIT */
/*
 * Reading replies of docs/protocol.md: the bytes of a message to numbers.
 *
 * What the library needs of a reply is here; other members are passed over, as the protocol wants it. A reply
 * that lacks what its kind must have, or has it in another type, is no reply.
 */
#ifndef QWAVE_REPLY_H
#define QWAVE_REPLY_H

#include "json.h"

/* The longest message of the protocol. */
#define REPLY_BYTES 16384

enum reply_kind {
	REPLY_DONE,
	REPLY_OPENED,
	REPLY_ADDED,
	REPLY_PRIORITY,
	REPLY_RATE,
	REPLY_FUNDAMENTALS,
	REPLY_FLOW_IDS,
	REPLY_ERROR
};

struct reply_number {
	bool known; /* false: null */
	uint64_t value;
};

/* Only the members of its kind are set. Strings and the list point into the message. */
struct reply {
	enum reply_kind kind;
	uint64_t id;
	union {
		uint32_t flow; /* added */
		struct {
			uint32_t conformant_dscp, non_conformant_dscp;
			uint32_t conformant_l2, non_conformant_l2;
		} priority;
		uint64_t bandwidth; /* rate, bits/s */
		struct {
			struct reply_number bottleneck, available; /* bits/s */
			struct reply_number rtt_us;
		} fundamentals;
		struct {
			struct json_value ids; /* an array of nothing but numbers within uint32_t */
			size_t count;
			bool more;
		} flows;
		struct {
			uint32_t win32; /* no number that means success or pending */
			struct json_value message, hint;
		} error;
	};
};

/* Read a message. False: it is none of these replies. */
bool reply_read(const char *message, size_t bytes, struct reply *reply);

/* "message (hint)" of an error as UTF-8 with a final NUL, cut to `size` bytes. */
void reply_error_text(const struct reply *reply, char *buffer, size_t size);

#endif
