/* SPDX-License-Identifier: MIT */
/* Reading replies; see reply.h. */
#include "reply.h"

#include <string.h>

#include "qos2.h"

/* The member `name` of the message; of several with one name the last. False: there is none. */
static bool find(const struct json_value *message, const char *name, struct json_value *value)
{
	struct json_cursor cursor = json_enter(message);
	struct json_value each, found;
	bool any = false;

	while (json_next_member(&cursor, &each, &found)) {
		if (json_equals(&each, name)) {
			*value = found;
			any = true;
		}
	}
	return any;
}

static bool find_string(const struct json_value *message, const char *name, struct json_value *value)
{
	return find(message, name, value) && value->kind == JSON_STRING;
}

static bool find_number(const struct json_value *message, const char *name, int64_t most, uint64_t *number)
{
	struct json_value value;

	if (!find(message, name, &value) || value.kind != JSON_INTEGER || value.integer < 0 || value.integer > most)
		return false;
	*number = (uint64_t)value.integer;
	return true;
}

static bool find_u32(const struct json_value *message, const char *name, uint32_t *number)
{
	uint64_t wide;

	if (!find_number(message, name, UINT32_MAX, &wide))
		return false;
	*number = (uint32_t)wide;
	return true;
}

/* Absent or null: not known. */
static bool find_estimate(const struct json_value *message, const char *name, struct reply_number *number)
{
	struct json_value value;

	number->value = 0;
	number->known = find(message, name, &value) && value.kind != JSON_NULL;
	return !number->known || find_number(message, name, INT64_MAX, &number->value);
}

static bool read_priority(const struct json_value *message, struct reply *reply)
{
	return find_u32(message, "conformant_dscp", &reply->priority.conformant_dscp) &&
	       find_u32(message, "non_conformant_dscp", &reply->priority.non_conformant_dscp) &&
	       find_u32(message, "conformant_l2", &reply->priority.conformant_l2) &&
	       find_u32(message, "non_conformant_l2", &reply->priority.non_conformant_l2);
}

static bool read_fundamentals(const struct json_value *message, struct reply *reply)
{
	return find_estimate(message, "bottleneck", &reply->fundamentals.bottleneck) &&
	       find_estimate(message, "available", &reply->fundamentals.available) &&
	       find_estimate(message, "rtt_us", &reply->fundamentals.rtt_us);
}

static bool read_flow_ids(const struct json_value *message, struct reply *reply)
{
	struct json_value more, id;
	struct json_cursor cursor;

	if (!find(message, "flows", &reply->flows.ids) || reply->flows.ids.kind != JSON_ARRAY)
		return false;
	reply->flows.count = 0;
	cursor = json_enter(&reply->flows.ids);
	while (json_next(&cursor, &id)) {
		if (id.kind != JSON_INTEGER || id.integer < 0 || id.integer > UINT32_MAX)
			return false;
		reply->flows.count++;
	}
	reply->flows.more = find(message, "more", &more) && more.kind == JSON_TRUE;
	/* A page that is empty and not the last one would be asked for again and again. */
	return reply->flows.count > 0 || !reply->flows.more;
}

static bool read_error(const struct json_value *message, struct reply *reply)
{
	static const struct json_value none = {.kind = JSON_STRING, .text = ""};

	if (!find_u32(message, "win32", &reply->error.win32) || !find_string(message, "message", &reply->error.message))
		return false;
	if (!find_string(message, "hint", &reply->error.hint))
		reply->error.hint = none;
	/* Numbers that do not say that a call failed. */
	if (reply->error.win32 == ERROR_SUCCESS || reply->error.win32 == ERROR_IO_PENDING)
		reply->error.win32 = ERROR_GEN_FAILURE;
	return true;
}

static bool read_kind(const struct json_value *result, enum reply_kind *kind)
{
	static const char *const names[] = {
		[REPLY_DONE] = "done",	       [REPLY_OPENED] = "opened", [REPLY_ADDED] = "added",
		[REPLY_PRIORITY] = "priority", [REPLY_RATE] = "rate",	  [REPLY_FUNDAMENTALS] = "fundamentals",
		[REPLY_FLOW_IDS] = "flow_ids", [REPLY_ERROR] = "error",
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (json_equals(result, names[i])) {
			*kind = (enum reply_kind)i;
			return true;
		}
	}
	return false;
}

bool reply_read(const char *bytes, size_t count, struct reply *reply)
{
	struct json_value message, result;

	if (!json_read(bytes, count, &message) || message.kind != JSON_OBJECT ||
	    !find_string(&message, "result", &result) || !read_kind(&result, &reply->kind) ||
	    !find_number(&message, "id", INT64_MAX, &reply->id))
		return false;
	switch (reply->kind) {
	case REPLY_DONE:
	case REPLY_OPENED:
		return true;
	case REPLY_ADDED:
		return find_u32(&message, "flow", &reply->flow);
	case REPLY_PRIORITY:
		return read_priority(&message, reply);
	case REPLY_RATE:
		return find_number(&message, "bandwidth", INT64_MAX, &reply->bandwidth);
	case REPLY_FUNDAMENTALS:
		return read_fundamentals(&message, reply);
	case REPLY_FLOW_IDS:
		return read_flow_ids(&message, reply);
	case REPLY_ERROR:
		return read_error(&message, reply);
	}
	return false;
}

void reply_error_text(const struct reply *reply, char *buffer, size_t size)
{
	size_t bytes = json_decode(&reply->error.message, buffer, size);

	if (reply->error.hint.bytes == 0 || size - bytes < sizeof(" ()"))
		return;
	memcpy(buffer + bytes, " (", 2);
	bytes += 2;
	bytes += json_decode(&reply->error.hint, buffer + bytes, size - bytes - 1);
	memcpy(buffer + bytes, ")", 2);
}
