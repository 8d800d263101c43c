/* SPDX-License-Identifier: MIT */
/* The inline functions of qos2.h, by the test vectors of Windows' arithmetic. Compiles as C and as C++. */
#include "expect.h"

#include <stddef.h>

struct vector {
	int family, protocol;
	UINT32 size;
	UINT64 rate;
	ULONG overhead;
	UINT64 added, subtracted;
};

static const struct vector vectors[] = {
	{AF_INET, IPPROTO_UDP, 1400, 20160000, 28, 20563200, 19764706},
	{AF_INET6, IPPROTO_UDP, 1400, 20160000, 48, 20851200, 19491713},
	{AF_INET, IPPROTO_TCP, 1460, 10000000, 40, 10273972, 9733334},
	{AF_INET6, IPPROTO_TCP, 1440, 10000000, 60, 10416666, 9600000},
	{AF_INET, IPPROTO_UDP, 160, 64000, 28, 75200, 54469},
	{AF_INET6, IPPROTO_UDP, 160, 64000, 48, 83200, 49231},
	/* What is not AF_INET is IPv6: Windows' own number of it too. */
	{23, IPPROTO_UDP, 160, 64000, 48, 83200, 49231},
	{AF_INET, IPPROTO_UDP, 1400, 0, 28, 0, 0},
	/* Beyond what 64 bits hold, and packets without payload. */
	{AF_INET, IPPROTO_UDP, 1, UINT64_MAX, 28, UINT64_MAX, 0},
	{AF_INET, IPPROTO_UDP, 0, 64000, 28, UINT64_MAX, 0},
};

int main(void)
{
	for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
		const struct vector *each = &vectors[i];

		EXPECT_EQUAL(each->overhead, QOS_HEADER_OVERHEAD(each->family, each->protocol));
		EXPECT_EQUAL(each->added, QOS_ADD_OVERHEAD(each->family, each->protocol, each->size, each->rate));
		if (each->rate != UINT64_MAX)
			EXPECT_EQUAL(each->subtracted,
				     QOS_SUBTRACT_OVERHEAD(each->family, each->protocol, each->size, each->rate));
	}
	EXPECT(QOS_SUBTRACT_OVERHEAD(AF_INET, IPPROTO_UDP, 1, UINT64_MAX) < UINT64_MAX / 28);
	EXPECT_EQUAL(8, offsetof(QOS_FLOW_FUNDAMENTALS, BottleneckBandwidth));
	EXPECT_EQUAL(16, offsetof(QOS_FLOW_FUNDAMENTALS, AvailableBandwidthSet));
	EXPECT_EQUAL(24, offsetof(QOS_FLOW_FUNDAMENTALS, AvailableBandwidth));
	EXPECT_EQUAL(32, offsetof(QOS_FLOW_FUNDAMENTALS, RTTSet));
	EXPECT_EQUAL(36, offsetof(QOS_FLOW_FUNDAMENTALS, RTT));
	EXPECT_EQUAL(8, offsetof(QOS_FLOWRATE_OUTGOING, ShapingBehavior));
	EXPECT_EQUAL(12, offsetof(QOS_FLOWRATE_OUTGOING, Reason));
	EXPECT_EQUAL(2 * sizeof(void *), offsetof(OVERLAPPED, Offset));
	EXPECT_EQUAL(2 * sizeof(void *) + 8, offsetof(OVERLAPPED, hEvent));
	return 0;
}
