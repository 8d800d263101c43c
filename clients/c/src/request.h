/* SPDX-License-Identifier: MIT */
/*
 * Writing requests of docs/protocol.md: one JSON object, member by member, into a buffer that holds the longest.
 *
 * Names and texts are this library's own, plain ASCII without anything to escape, and numbers have at most 20
 * characters, so that nothing here can fail: REQUEST_BYTES is several times the longest request.
 */
#ifndef QWAVE_REQUEST_H
#define QWAVE_REQUEST_H

#include <stddef.h>
#include <stdint.h>

#define REQUEST_BYTES 512

struct request {
	char text[REQUEST_BYTES];
	size_t bytes;
};

/* Begin the request number `id` for operation `op`. */
void request_begin(struct request *request, const char *op, uint64_t id);

void request_number(struct request *request, const char *name, int64_t value);

/* A member that is true; one that is false is left out, which says the same. */
void request_true(struct request *request, const char *name);

void request_text(struct request *request, const char *name, const char *value);

/* The last step: nothing is added behind it. */
void request_finish(struct request *request);

#endif
