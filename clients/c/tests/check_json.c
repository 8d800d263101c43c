/* SPDX-License-Identifier: MIT */
/*
 * What the library reads of a message: documents on stdin, each behind a line with its length; for each a line with
 * its value written down again in one form, or "refused". The test compares that with what Python reads.
 */
#include "expect.h"

#include <inttypes.h>
#include <string.h>

#include "json.h"

static void write_value(const struct json_value *value);

static void write_string(const struct json_value *string)
{
	char *text = malloc(string->bytes + 1);
	size_t bytes;

	EXPECT(text != NULL);
	bytes = json_decode(string, text, string->bytes + 1);
	EXPECT(memchr(text, '\0', bytes) == NULL);
	putchar('"');
	for (size_t i = 0; i < bytes; i++)
		printf("%02x", (unsigned char)text[i]);
	putchar('"');
	free(text);
}

static void write_array(const struct json_value *array)
{
	struct json_cursor cursor = json_enter(array);
	struct json_value element;

	putchar('[');
	while (json_next(&cursor, &element)) {
		write_value(&element);
		putchar(',');
	}
	putchar(']');
}

static void write_object(const struct json_value *object)
{
	struct json_cursor cursor = json_enter(object);
	struct json_value name, value;

	putchar('{');
	while (json_next_member(&cursor, &name, &value)) {
		write_string(&name);
		putchar(':');
		write_value(&value);
		putchar(',');
	}
	putchar('}');
}

static void write_value(const struct json_value *value)
{
	static const char *const words[] = {[JSON_NULL] = "null", [JSON_FALSE] = "false", [JSON_TRUE] = "true"};

	switch (value->kind) {
	case JSON_INTEGER:
		printf("%" PRId64, value->integer);
		break;
	case JSON_NUMBER:
		putchar('#');
		break;
	case JSON_STRING:
		write_string(value);
		break;
	case JSON_ARRAY:
		write_array(value);
		break;
	case JSON_OBJECT:
		write_object(value);
		break;
	default:
		printf("%s", words[value->kind]);
	}
}

int main(void)
{
	size_t bytes;

	while (scanf("%zu%*1[\n]", &bytes) == 1) {
		/* Exactly as large, so that a sanitizer sees each byte too far. */
		char *text = malloc(bytes > 0 ? bytes : 1);
		struct json_value value;

		EXPECT(text != NULL);
		EXPECT_EQUAL(bytes, fread(text, 1, bytes, stdin));
		if (json_read(text, bytes, &value))
			write_value(&value);
		else
			printf("refused");
		putchar('\n');
		free(text);
	}
	return 0;
}
