/* SPDX-License-Identifier: MIT */
/*
 * Reading JSON (RFC 8259) where it lies: no copies, no memory of its own, no trust.
 *
 * Strategy: a cursor, and one function that reads the next value whole. Of an object or an array it checks
 * everything and tells the extent, which can then be entered with a cursor of its own. Bytes that are not
 * exactly JSON are refused: bad escapes, control characters, numbers like 01, text behind the value, UTF-8 that
 * is none, and nesting beyond JSON_DEPTH, which bounds the stack.
 */
#ifndef QWAVE_JSON_H
#define QWAVE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JSON_DEPTH 32

enum json_kind {
	JSON_NULL,
	JSON_FALSE,
	JSON_TRUE,
	JSON_INTEGER, /* within int64_t; `integer` */
	JSON_NUMBER,  /* any other number */
	JSON_STRING,
	JSON_ARRAY,
	JSON_OBJECT
};

struct json_value {
	enum json_kind kind;
	int64_t integer;
	const char *text; /* as it lies there: of a string without its quotes, of the others all of it */
	size_t bytes;
};

struct json_cursor {
	const char *at;
	const char *end;
};

/* Read all `bytes` as one value. False: they are no JSON. */
bool json_read(const char *text, size_t bytes, struct json_value *value);

/* A cursor at the first element of an array or member of an object that json_read() took. */
struct json_cursor json_enter(const struct json_value *value);

/* The next element; false: there is no further one. */
bool json_next(struct json_cursor *cursor, struct json_value *element);

/* The next member; false: there is no further one. */
bool json_next_member(struct json_cursor *cursor, struct json_value *name, struct json_value *value);

/* Whether a string is `text` (plain ASCII), however it is escaped. */
bool json_equals(const struct json_value *string, const char *text);

/*
 * The contents of a string as UTF-8 with a final NUL, cut between two characters where `size` is too small; a
 * character U+0000 is left out. Returns the bytes written, without the NUL; `size` is at least 1.
 */
size_t json_decode(const struct json_value *string, char *buffer, size_t size);

#endif
