/* SPDX-License-Identifier: MIT */
/* Writing requests; see request.h. By hand and not by snprintf(): it is half of what a call costs here. */
#include "request.h"

#include <string.h>

/* What would not fit is left out: the daemon then refuses the request, and nothing is overwritten. */
static void append(struct request *request, const char *text, size_t bytes)
{
	if (bytes > sizeof(request->text) - request->bytes)
		return;
	memcpy(request->text + request->bytes, text, bytes);
	request->bytes += bytes;
}

static void append_number(struct request *request, uint64_t value, const char *sign)
{
	char digits[20]; /* of 2^64 - 1 */
	size_t first = sizeof(digits);

	do {
		digits[--first] = (char)('0' + value % 10);
		value /= 10;
	} while (value != 0);
	append(request, sign, strlen(sign));
	append(request, digits + first, sizeof(digits) - first);
}

static void append_name(struct request *request, const char *name)
{
	append(request, ",\"", 2);
	append(request, name, strlen(name));
	append(request, "\":", 2);
}

void request_begin(struct request *request, const char *op, uint64_t id)
{
	request->bytes = 0;
	append(request, "{\"op\":\"", 7);
	append(request, op, strlen(op));
	append(request, "\",\"v\":1,\"id\":", 13);
	append_number(request, id, "");
}

void request_number(struct request *request, const char *name, int64_t value)
{
	append_name(request, name);
	append_number(request, value < 0 ? -(uint64_t)value : (uint64_t)value, value < 0 ? "-" : "");
}

void request_true(struct request *request, const char *name)
{
	append_name(request, name);
	append(request, "true", 4);
}

void request_text(struct request *request, const char *name, const char *value)
{
	append_name(request, name);
	append(request, "\"", 1);
	append(request, value, strlen(value));
	append(request, "\"", 1);
}

void request_finish(struct request *request)
{
	append(request, "}", 1);
}
