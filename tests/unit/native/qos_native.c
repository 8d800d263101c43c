/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The pure headers of bpf/ as a shared library for ctypes: each function under its own name with
 * `native_` before it, and nothing decided here. Two things that only C can do cheaply are added: a
 * buffer that ends where readable memory ends, and a loop that charges a bucket from several threads.
 */
#define _DEFAULT_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include "types.h"
#include "packet.h"
#include "dsfield.h"
#include "bucket.h"
#include "match.h"

/* The end of `pages` writable pages: the byte there faults. 0: no memory. */
void *native_guarded_end(u32 pages)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	u8 *start = mmap(0, (pages + 1) * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (start == MAP_FAILED || mprotect(start + pages * page, page, PROT_NONE))
		return 0;
	return start + pages * page;
}

int native_packet_network(const void *data, const void *data_end, u32 link_bytes, struct packet *p)
{
	return packet_network(data, data_end, link_bytes, p);
}

int native_packet_destination(const void *data, const void *data_end, struct packet *p)
{
	return packet_destination(data, data_end, p);
}

u32 native_packet_ip_bytes(u32 wire_len, u32 gso_segs, u32 l3_offset)
{
	return packet_ip_bytes(wire_len, gso_segs, l3_offset);
}

int native_packet_source(const void *data, const void *data_end, const struct packet *p, u32 address_be[4])
{
	return packet_source(data, data_end, p, address_be);
}

u8 native_dsfield_dscp(u8 dsfield)
{
	return dsfield_dscp(dsfield);
}

u8 native_dsfield_with(u8 dsfield, u8 dscp)
{
	return dsfield_with(dsfield, dscp);
}

u32 native_dsfield_rewrite(const void *l3, const void *data_end, u8 family, u8 dscp, u32 out[3])
{
	return dsfield_rewrite(l3, data_end, family, dscp, out);
}

u64 native_bucket_cost_ns(u32 bytes, u64 ns_per_byte_20)
{
	return bucket_cost_ns(bytes, ns_per_byte_20);
}

u64 native_bucket_wait_ns(u64 tat_ns, u64 now_ns, u64 need_ns, u64 depth_ns)
{
	return bucket_wait_ns(tat_ns, now_ns, need_ns, depth_ns);
}

int native_bucket_charge(u64 *tat_ns, u64 seen_ns, u64 now_ns, u64 cost_ns)
{
	return bucket_charge(tat_ns, seen_ns, now_ns, cost_ns);
}

/* Charges `times` packets, each until it succeeds; for several threads on one bucket. */
void native_bucket_charge_many(u64 *tat_ns, u64 now_ns, u64 cost_ns, u32 times)
{
	while (times) {
		if (bucket_charge(tat_ns, *(volatile u64 *)tat_ns, now_ns, cost_ns))
			times--;
	}
}

/* The act of the first of `count` rules that matches, as the datapath finds it; 0: none. */
u64 native_match_first(const struct rule *rules, u32 count, const struct facts *f)
{
	u64 act = 0;

	for (u32 i = 0; i < count; i++)
		act = match_take(act, &rules[i], f);
	return act;
}

u32 native_match_flow_id(u64 act)
{
	return match_flow_id(act);
}

u32 native_match_pool(u64 act)
{
	return match_pool(act);
}

u32 native_match_bucket(u64 act)
{
	return match_bucket(act);
}

int native_match_same(const struct connection *a, const struct connection *b)
{
	return match_same(a, b);
}
