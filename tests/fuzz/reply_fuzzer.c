/* SPDX-License-Identifier: MIT */
/*
 * A fuzzer of what libqwave reads from the daemon (clients/c/src/reply.c and json.c): libFuzzer with the address and
 * undefined behaviour sanitizers. Whatever the bytes are, reading ends, stays within them, and what is taken for a
 * reply keeps the promises of reply.h; a promise that is broken ends the fuzzer.
 *
 *     make -C clients/c fuzz && clients/c/build/fuzz/reply_fuzzer -max_len=16384 FOLDER tests/fuzz/corpus/reply
 *
 * writes what it finds to FOLDER; test_reply_parser.py runs it for a bounded time.
 */
#include <stdlib.h>
#include <string.h>

#include "qos2.h"
#include "reply.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void promise(bool kept)
{
	if (!kept)
		abort();
}

/* Decode every string into buffers of each size that is too small for it, and enter everything. */
static void visit(const struct json_value *value)
{
	struct json_cursor cursor;
	struct json_value name, each;
	char buffer[8];

	if (value->kind == JSON_STRING) {
		for (size_t size = 1; size <= sizeof(buffer); size++) {
			size_t written = json_decode(value, buffer, size);

			promise(written < size && strlen(buffer) == written);
		}
		/* Equal to what it decodes to, where that is all of it and plain. */
		if (value->bytes < sizeof(buffer) && memchr(value->text, '\\', value->bytes) == NULL &&
		    json_decode(value, buffer, sizeof(buffer)) == value->bytes && (signed char)buffer[0] >= 0)
			promise(memcmp(buffer, value->text, value->bytes) == 0);
	} else if (value->kind == JSON_ARRAY) {
		cursor = json_enter(value);
		while (json_next(&cursor, &each))
			visit(&each);
		promise(cursor.at == cursor.end);
	} else if (value->kind == JSON_OBJECT) {
		cursor = json_enter(value);
		while (json_next_member(&cursor, &name, &each)) {
			visit(&name);
			visit(&each);
		}
		promise(cursor.at == cursor.end);
	}
}

static void check_error(const struct reply *reply)
{
	char text[64];

	promise(reply->error.win32 != ERROR_SUCCESS && reply->error.win32 != ERROR_IO_PENDING);
	for (size_t size = 1; size <= sizeof(text); size++) {
		memset(text, 0x5a, sizeof(text));
		reply_error_text(reply, text, size);
		promise(strlen(text) < size);
	}
}

static void check_ids(const struct reply *reply)
{
	struct json_cursor cursor = json_enter(&reply->flows.ids);
	struct json_value id;
	size_t count = 0;

	while (json_next(&cursor, &id)) {
		promise(id.kind == JSON_INTEGER && id.integer >= 0 && id.integer <= UINT32_MAX);
		count++;
	}
	promise(count == reply->flows.count && (count > 0 || !reply->flows.more));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct json_value value;
	struct reply reply;

	if (json_read((const char *)data, bytes, &value))
		visit(&value);
	if (!reply_read((const char *)data, bytes, &reply))
		return 0;
	promise(value.kind == JSON_OBJECT && reply.id <= INT64_MAX);
	if (reply.kind == REPLY_ERROR)
		check_error(&reply);
	else if (reply.kind == REPLY_FLOW_IDS)
		check_ids(&reply);
	return 0;
}
