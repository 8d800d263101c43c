/* SPDX-License-Identifier: MIT */
/* Reading JSON; see json.h. */
#include "json.h"

#include <string.h>

static bool read_value(struct json_cursor *cursor, struct json_value *value, int depth);

static bool at_end(const struct json_cursor *cursor)
{
	return cursor->at == cursor->end;
}

static bool is_digit(const struct json_cursor *cursor)
{
	return !at_end(cursor) && *cursor->at >= '0' && *cursor->at <= '9';
}

static void skip_blanks(struct json_cursor *cursor)
{
	while (!at_end(cursor) &&
	       (*cursor->at == ' ' || *cursor->at == '\t' || *cursor->at == '\n' || *cursor->at == '\r'))
		cursor->at++;
}

/* Pass over one byte if it is `wanted`. */
static bool take(struct json_cursor *cursor, char wanted)
{
	if (at_end(cursor) || *cursor->at != wanted)
		return false;
	cursor->at++;
	return true;
}

static bool take_word(struct json_cursor *cursor, const char *word)
{
	size_t bytes = strlen(word);

	if ((size_t)(cursor->end - cursor->at) < bytes || memcmp(cursor->at, word, bytes) != 0)
		return false;
	cursor->at += bytes;
	return true;
}

static bool read_hex(struct json_cursor *cursor, uint32_t *unit)
{
	*unit = 0;
	for (int i = 0; i < 4; i++) {
		char c = at_end(cursor) ? '\0' : *cursor->at;

		if (c >= '0' && c <= '9')
			*unit = *unit << 4 | (uint32_t)(c - '0');
		else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))
			*unit = *unit << 4 | (uint32_t)((c | 0x20) - 'a' + 10);
		else
			return false;
		cursor->at++;
	}
	return true;
}

/* The character behind a backslash and a `u`; half a surrogate pair is none (RFC 8259 section 8.2). */
static bool read_unicode_escape(struct json_cursor *cursor, uint32_t *character)
{
	uint32_t low;

	if (!read_hex(cursor, character) || (*character >= 0xdc00 && *character <= 0xdfff))
		return false;
	if (*character < 0xd800 || *character > 0xdbff)
		return true;
	if (!take(cursor, '\\') || !take(cursor, 'u') || !read_hex(cursor, &low) || low < 0xdc00 || low > 0xdfff)
		return false;
	*character = 0x10000 + ((*character - 0xd800) << 10) + (low - 0xdc00);
	return true;
}

/* A character of two to four bytes as in RFC 3629: the shortest form, no surrogates, at most U+10FFFF. */
static bool read_utf8(struct json_cursor *cursor, uint32_t *character)
{
	static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
	unsigned char first = (unsigned char)*cursor->at++;
	int more;

	if (first >= 0xc2 && first <= 0xdf)
		more = 1;
	else if ((first & 0xf0) == 0xe0)
		more = 2;
	else if (first >= 0xf0 && first <= 0xf4)
		more = 3;
	else
		return false;
	*character = first & (0x3fu >> more);
	for (int i = 0; i < more; i++) {
		if (at_end(cursor) || ((unsigned char)*cursor->at & 0xc0) != 0x80)
			return false;
		*character = *character << 6 | ((unsigned char)*cursor->at++ & 0x3fu);
	}
	return *character >= least[more] && *character <= 0x10ffff && (*character < 0xd800 || *character > 0xdfff);
}

static bool read_escape(struct json_cursor *cursor, uint32_t *character)
{
	static const char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
	const char *found;
	char letter;

	if (at_end(cursor))
		return false;
	letter = *cursor->at++;
	if (letter == 'u')
		return read_unicode_escape(cursor, character);
	found = letter == '\0' ? NULL : strchr(letters, letter);
	if (found == NULL)
		return false;
	*character = (uint32_t)meant[found - letters];
	return true;
}

/* The next character within a string, which is not at its end. */
static bool read_character(struct json_cursor *cursor, uint32_t *character)
{
	unsigned char first = (unsigned char)*cursor->at;

	if (first >= 0x80)
		return read_utf8(cursor, character);
	cursor->at++;
	if (first == '\\')
		return read_escape(cursor, character);
	*character = first;
	return first >= 0x20;
}

/* Behind the opening quote. */
static bool read_string(struct json_cursor *cursor, struct json_value *value)
{
	uint32_t character;

	value->kind = JSON_STRING;
	value->text = cursor->at;
	while (!at_end(cursor) && *cursor->at != '"') {
		if (!read_character(cursor, &character))
			return false;
	}
	value->bytes = (size_t)(cursor->at - value->text);
	return take(cursor, '"');
}

static bool skip_digits(struct json_cursor *cursor)
{
	const char *first = cursor->at;

	while (is_digit(cursor))
		cursor->at++;
	return cursor->at != first;
}

/* Minus as many as the digits say, since there is one negative number more; false: it is beyond int64_t. */
static bool negated(const char *digit, const char *end, int64_t *number)
{
	*number = 0;
	for (; digit != end; digit++) {
		if (__builtin_mul_overflow(*number, 10, number) ||
		    __builtin_sub_overflow(*number, *digit - '0', number))
			return false;
	}
	return true;
}

static bool read_number(struct json_cursor *cursor, struct json_value *value)
{
	bool negative = take(cursor, '-'), whole = true;
	const char *digits = cursor->at, *digits_end;

	/* No digit may follow a leading zero: behind a value that is refused by whoever reads on. */
	if (!take(cursor, '0') && !skip_digits(cursor))
		return false;
	digits_end = cursor->at;
	if (take(cursor, '.')) {
		whole = false;
		if (!skip_digits(cursor))
			return false;
	}
	if (take(cursor, 'e') || take(cursor, 'E')) {
		whole = false;
		if (!take(cursor, '+'))
			take(cursor, '-');
		if (!skip_digits(cursor))
			return false;
	}
	value->kind = JSON_NUMBER;
	if (whole && negated(digits, digits_end, &value->integer) && (negative || value->integer != INT64_MIN)) {
		value->kind = JSON_INTEGER;
		if (!negative)
			value->integer = -value->integer;
	}
	return true;
}

/* Behind the opening bracket: `name: value` or `value`, with commas between, up to the closing bracket. */
static bool skip_entries(struct json_cursor *cursor, char closing, int depth)
{
	struct json_value entry;

	skip_blanks(cursor);
	if (take(cursor, closing))
		return true;
	do {
		skip_blanks(cursor);
		if (closing == '}') {
			if (!take(cursor, '"') || !read_string(cursor, &entry))
				return false;
			skip_blanks(cursor);
			if (!take(cursor, ':'))
				return false;
		}
		if (!read_value(cursor, &entry, depth))
			return false;
		skip_blanks(cursor);
	} while (take(cursor, ','));
	return take(cursor, closing);
}

static bool read_value(struct json_cursor *cursor, struct json_value *value, int depth)
{
	bool sound = false;

	skip_blanks(cursor);
	value->text = cursor->at;
	value->integer = 0;
	if (take(cursor, '"'))
		return read_string(cursor, value);
	if (take_word(cursor, "null")) {
		value->kind = JSON_NULL;
		sound = true;
	} else if (take_word(cursor, "true")) {
		value->kind = JSON_TRUE;
		sound = true;
	} else if (take_word(cursor, "false")) {
		value->kind = JSON_FALSE;
		sound = true;
	} else if (take(cursor, '[')) {
		value->kind = JSON_ARRAY;
		sound = depth > 0 && skip_entries(cursor, ']', depth - 1);
	} else if (take(cursor, '{')) {
		value->kind = JSON_OBJECT;
		sound = depth > 0 && skip_entries(cursor, '}', depth - 1);
	} else {
		sound = read_number(cursor, value);
	}
	value->bytes = (size_t)(cursor->at - value->text);
	return sound;
}

bool json_read(const char *text, size_t bytes, struct json_value *value)
{
	struct json_cursor cursor = {text, text + bytes};

	if (!read_value(&cursor, value, JSON_DEPTH))
		return false;
	skip_blanks(&cursor);
	return at_end(&cursor);
}

struct json_cursor json_enter(const struct json_value *value)
{
	struct json_cursor cursor = {value->text + 1, value->text + value->bytes - 1};

	return cursor;
}

bool json_next(struct json_cursor *cursor, struct json_value *element)
{
	skip_blanks(cursor);
	if (at_end(cursor) || !read_value(cursor, element, JSON_DEPTH))
		return false;
	skip_blanks(cursor);
	take(cursor, ',');
	return true;
}

bool json_next_member(struct json_cursor *cursor, struct json_value *name, struct json_value *value)
{
	skip_blanks(cursor);
	if (!take(cursor, '"') || !read_string(cursor, name))
		return false;
	skip_blanks(cursor);
	take(cursor, ':');
	return json_next(cursor, value);
}

bool json_equals(const struct json_value *string, const char *text)
{
	struct json_cursor cursor = {string->text, string->text + string->bytes};
	uint32_t character;

	for (; !at_end(&cursor); text++) {
		if (!read_character(&cursor, &character) || character != (unsigned char)*text || *text == '\0')
			return false;
	}
	return *text == '\0';
}

static size_t encode_utf8(uint32_t character, char bytes[4])
{
	if (character < 0x80) {
		bytes[0] = (char)character;
		return 1;
	}
	if (character < 0x800) {
		bytes[0] = (char)(0xc0 | character >> 6);
		bytes[1] = (char)(0x80 | (character & 0x3f));
		return 2;
	}
	if (character < 0x10000) {
		bytes[0] = (char)(0xe0 | character >> 12);
		bytes[1] = (char)(0x80 | (character >> 6 & 0x3f));
		bytes[2] = (char)(0x80 | (character & 0x3f));
		return 3;
	}
	bytes[0] = (char)(0xf0 | character >> 18);
	bytes[1] = (char)(0x80 | (character >> 12 & 0x3f));
	bytes[2] = (char)(0x80 | (character >> 6 & 0x3f));
	bytes[3] = (char)(0x80 | (character & 0x3f));
	return 4;
}

size_t json_decode(const struct json_value *string, char *buffer, size_t size)
{
	struct json_cursor cursor = {string->text, string->text + string->bytes};
	size_t written = 0;
	uint32_t character;
	char bytes[4];

	while (!at_end(&cursor) && read_character(&cursor, &character)) {
		size_t count = encode_utf8(character, bytes);

		if (character == 0)
			continue;
		if (written + count >= size)
			break;
		memcpy(buffer + written, bytes, count);
		written += count;
	}
	buffer[written] = '\0';
	return written;
}
