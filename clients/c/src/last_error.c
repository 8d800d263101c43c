/* SPDX-License-Identifier: MIT */
/*
 * The last error of each thread, as a number and in words.
 *
 * The number lies behind GetLastError() and SetLastError(), which a program may have of its own: they are weak,
 * and the library calls them like everybody else. So the words are kept with the number that they are about, and
 * told only while that is still the last error.
 */
#include "outcome.h"

#include <string.h>

static _Thread_local DWORD last_error;
static _Thread_local struct outcome last_outcome;

__attribute__((weak)) DWORD GetLastError(void)
{
	return last_error;
}

__attribute__((weak)) void SetLastError(DWORD dwErrCode)
{
	last_error = dwErrCode;
}

static const struct {
	DWORD error;
	const char *meaning;
} meanings[] = {
	{ERROR_SUCCESS, ""},
	{ERROR_ACCESS_DENIED, "needs root or the group qos2"},
	{ERROR_INVALID_HANDLE, "no open handle of this process"},
	{ERROR_NOT_ENOUGH_MEMORY, "not enough memory"},
	{ERROR_GEN_FAILURE, "an internal failure; the daemon's log may say more"},
	{ERROR_NOT_SUPPORTED, "not possible on this flow or path"},
	{ERROR_NETWORK_BUSY, "the path has no room for this rate now (ask for less, or wait with QOSNotifyAvailable)"},
	{ERROR_INVALID_PARAMETER, "a parameter that cannot be honoured"},
	{ERROR_INSUFFICIENT_BUFFER, "the buffer is too small (*Size says what is needed)"},
	{ERROR_ALREADY_EXISTS, "such a notification is pending on the flow already"},
	{ERROR_NO_DATA, "no estimate exists yet (try again in a second)"},
	{ERROR_OPERATION_ABORTED, "cancelled, or its flow or handle ended"},
	{ERROR_IO_INCOMPLETE, "the call is still under way"},
	{ERROR_IO_PENDING, "the call is under way (wait for hEvent)"},
	{ERROR_SERVICE_DEPENDENCY_FAIL, "the daemon cannot be reached (start qos2d)"},
	{ERROR_IO_DEVICE, "the kernel refused; nothing was changed"},
	{ERROR_DEVICE_REINITIALIZATION_NEEDED, "the daemon went away (close the handle, make a new one, add again)"},
	{ERROR_NOT_FOUND, "no such flow, or the socket is not in it"},
	{ERROR_HOST_UNREACHABLE, "no route to the host"},
	{ERROR_RETRY, "too little data so far (try again)"},
	{ERROR_ACCESS_DISABLED_BY_POLICY, "forbidden by the administrator's configuration"},
	{ERROR_NO_SYSTEM_RESOURCES, "a limit is reached (end flows or handles, or raise it)"},
};

const char *outcome_meaning(DWORD error)
{
	for (size_t i = 0; i < sizeof(meanings) / sizeof(meanings[0]); i++) {
		if (meanings[i].error == error)
			return meanings[i].meaning;
	}
	return "an error without a description";
}

void outcome_fail(struct outcome *outcome, DWORD error, const char *text)
{
	size_t bytes = text == NULL ? 0 : strlen(text);

	if (bytes >= OUTCOME_TEXT_BYTES) {
		bytes = OUTCOME_TEXT_BYTES - 1;
		/* Not within a character: the bytes behind its first one are 10xxxxxx (RFC 3629). */
		while (bytes > 0 && ((unsigned char)text[bytes] & 0xc0) == 0x80)
			bytes--;
	}
	outcome->error = error;
	if (bytes > 0)
		memcpy(outcome->text, text, bytes);
	outcome->text[bytes] = '\0';
}

void outcome_publish(const struct outcome *outcome)
{
	outcome_fail(&last_outcome, outcome->error, outcome->text);
	SetLastError(outcome->error);
}

const char *qos2_last_error_message(void)
{
	DWORD error = GetLastError();

	if (error == last_outcome.error && last_outcome.text[0] != '\0')
		return last_outcome.text;
	return outcome_meaning(error);
}
