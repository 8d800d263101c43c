/* SPDX-License-Identifier: MIT */
/* How a call ended: 0 or a Win32 error number, with words for people where it failed. */
#ifndef QWAVE_OUTCOME_H
#define QWAVE_OUTCOME_H

#include "qos2.h"

/* Room for a message and its hint; longer ones are cut between two characters. */
#define OUTCOME_TEXT_BYTES 512

struct outcome {
	DWORD error;
	char text[OUTCOME_TEXT_BYTES]; /* "" where `error` says it all, or is 0 */
};

static inline void outcome_succeed(struct outcome *outcome)
{
	outcome->error = ERROR_SUCCESS;
	outcome->text[0] = '\0';
}

/* `text` is cut if need be; it may be NULL. */
void outcome_fail(struct outcome *outcome, DWORD error, const char *text);

/* The meaning of an error number, for a failure without words of its own. */
const char *outcome_meaning(DWORD error);

/* Make `outcome` this thread's last error. Only for one that failed. */
void outcome_publish(const struct outcome *outcome);

#endif
