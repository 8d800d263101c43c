/* SPDX-License-Identifier: MIT */
/* Where a call writes its result; see answer.h. */
#include "answer.h"

#include <string.h>

ULONG answer_bytes(enum answer_kind kind)
{
	switch (kind) {
	case ANSWER_FUNDAMENTALS:
		return sizeof(QOS_FLOW_FUNDAMENTALS);
	case ANSWER_PRIORITY:
		return sizeof(QOS_PACKET_PRIORITY);
	case ANSWER_RATE:
	case ANSWER_AVAILABLE:
		return sizeof(UINT64);
	default:
		return 0;
	}
}

bool answer_lacks_room(const struct answer *answer)
{
	return answer->room < answer_bytes(answer->kind);
}

static QOS_FLOW_FUNDAMENTALS fundamentals_of(const struct reply *reply)
{
	const struct reply_number *rtt_us = &reply->fundamentals.rtt_us;
	QOS_FLOW_FUNDAMENTALS known;

	memset(&known, 0, sizeof(known)); /* the gaps too */
	known.BottleneckBandwidthSet = reply->fundamentals.bottleneck.known;
	known.BottleneckBandwidth = reply->fundamentals.bottleneck.value;
	known.AvailableBandwidthSet = reply->fundamentals.available.known;
	known.AvailableBandwidth = reply->fundamentals.available.value;
	known.RTTSet = rtt_us->known;
	known.RTT = rtt_us->value > UINT32_MAX ? UINT32_MAX : (UINT32)rtt_us->value;
	return known;
}

static QOS_PACKET_PRIORITY priority_of(const struct reply *reply)
{
	QOS_PACKET_PRIORITY priority = {
		.ConformantDSCPValue = reply->priority.conformant_dscp,
		.NonConformantDSCPValue = reply->priority.non_conformant_dscp,
		.ConformantL2Value = reply->priority.conformant_l2,
		.NonConformantL2Value = reply->priority.non_conformant_l2,
	};

	return priority;
}

/* By memcpy: nothing says that the program's buffer is aligned. */
static void write_result(const struct answer *answer, const struct reply *reply)
{
	QOS_FLOW_FUNDAMENTALS known;
	QOS_PACKET_PRIORITY priority;

	switch (answer->kind) {
	case ANSWER_FUNDAMENTALS:
		known = fundamentals_of(reply);
		memcpy(answer->buffer, &known, sizeof(known));
		break;
	case ANSWER_PRIORITY:
		priority = priority_of(reply);
		memcpy(answer->buffer, &priority, sizeof(priority));
		break;
	case ANSWER_RATE:
		memcpy(answer->buffer, &reply->bandwidth, sizeof(reply->bandwidth));
		break;
	default:
		break;
	}
}

/* Whether an error yields to a buffer that is too small. */
static bool yields(const struct answer *answer, DWORD error)
{
	if (answer->kind == ANSWER_AVAILABLE) {
		/* Asked for 0 bits/s, the daemon finds that wrong where nothing else is. */
		return error == ERROR_INVALID_PARAMETER;
	}
	return error == ERROR_SUCCESS || error == ERROR_NO_DATA || error == ERROR_RETRY;
}

ULONG answer_settle(const struct answer *answer, struct outcome *outcome, const struct reply *reply)
{
	ULONG needed = answer_bytes(answer->kind);

	if (answer_lacks_room(answer) && yields(answer, outcome->error)) {
		*answer->size = needed;
		outcome_fail(outcome, ERROR_INSUFFICIENT_BUFFER, NULL);
	}
	if (outcome->error != ERROR_SUCCESS || answer->kind == ANSWER_NOTHING || answer->kind == ANSWER_AVAILABLE)
		return 0;
	write_result(answer, reply);
	*answer->size = needed;
	return needed;
}
