/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The rate contract: a token bucket kept as one u64, the theoretical arrival time of the GCRA (ITU-T
 * I.371 Annex A, virtual scheduling form): the time at which the bucket would be full again.
 *
 * Strategy: tokens are time. A packet of n bytes costs n / rate; the bucket holds `depth_ns` of it. A
 * packet conforms when what it needs fits: `need_ns` is its whole cost, but of a GSO skb the cost of
 * one segment (headers rounded up). It is then charged in full, on debt if need be: 64 KB handed over by TCP at once
 * must not starve behind a small bucket, and the debt is paid before the next packet conforms.
 *
 * One compare-and-swap makes it exact with several CPUs on one flow. Costs are rounded up to whole
 * ns, so a contract is never exceeded; below 10 Gbit/s a full packet loses less than 0.1 % by it.
 * There is no product of rate and idle time, so no idle time can overflow it.
 *
 * Linux has that instruction for eBPF since 5.12. Before (QOS_WITHOUT_COMPARE_AND_SWAP) a flow that
 * sends is charged by an atomic addition, which loses nothing. Only the first packet after a pause is
 * charged by a plain store: what other CPUs charge in that same moment may be forgotten.
 *
 * Pure: plain pointers and a clock given by the caller. Included by qos.bpf.c and by native tests.
 */
#ifndef QOS_BUCKET_H
#define QOS_BUCKET_H

#include "types.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define BUCKET_RETRIES 8
/* A longer skb does not exist (BIG TCP ends at 512 KB); the clamp keeps cost within 64 bits. */
#define BUCKET_MAX_BYTES (1u << 23)

/* Cost in ns of `bytes` at an inverse rate of `ns_per_byte_20` / 2^20 ns per byte, rounded up. */
static __always_inline u64 bucket_cost_ns(u32 bytes, u64 ns_per_byte_20)
{
	u64 n = bytes < BUCKET_MAX_BYTES ? bytes : BUCKET_MAX_BYTES;

	return (n * ns_per_byte_20 + (1u << 20) - 1) >> 20;
}

/* How long from `now_ns` until a packet conforms; 0: it conforms. More than the bucket is never needed. */
static __always_inline u64 bucket_wait_ns(u64 tat_ns, u64 now_ns, u64 need_ns, u64 depth_ns)
{
	u64 start = tat_ns > now_ns ? tat_ns : now_ns;
	u64 need = need_ns < depth_ns ? need_ns : depth_ns;
	u64 ahead = start - now_ns + need;

	return ahead > depth_ns ? ahead - depth_ns : 0;
}

/* One attempt to charge `cost_ns` against the state `seen_ns`; false: another CPU was faster. */
static __always_inline int bucket_charge(u64 *tat_ns, u64 seen_ns, u64 now_ns, u64 cost_ns)
{
#ifdef QOS_WITHOUT_COMPARE_AND_SWAP
	if (seen_ns >= now_ns)
		__sync_fetch_and_add(tat_ns, cost_ns);
	else
		*(volatile u64 *)tat_ns = now_ns + cost_ns;
	return 1;
#else
	u64 start = seen_ns > now_ns ? seen_ns : now_ns;

	return __sync_val_compare_and_swap(tat_ns, seen_ns, start + cost_ns) == seen_ns;
#endif
}

#endif
