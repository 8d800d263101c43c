// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * qos_egress: the way of a packet at tc egress. Finds the flow of the sending socket, or the one that the
 * administrator's rules give, enforces its rate contract, counts, writes its DSCP, and lets the next filter run.
 *
 * Strategy (measured, docs/benchmarks.md): the socket's own storage before any parsing, so that
 * traffic that nobody registered and no rule speaks of pays two lookups; rules are gone through once per
 * socket or connection, and what they said is kept; the clock of the current tick wherever a lower bound
 * will do, the exact one only before refusing; no direct packet write anywhere, since a single one
 * makes the kernel copy each cloned skb (all of TCP's data) at entry; two cache lines per flow.
 *
 * One program per shaper, made at the end of this file, and the whole compiled once per link layer: a
 * device runs the program of its shaper, so no packet looks up its device and changing a shaper
 * replaces one program.
 *
 * Compiled by bcc, which rewrites map calls in its main file only: the loader puts the files named *.bpf.c in the place
 * of their #include.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/in.h>
#include <uapi/linux/pkt_cls.h>

#include "types.h"
#include "packet.h"
#include "dsfield.h"
#include "bucket.h"
#include "match.h"

#include "tables.bpf.c"

/* Of our htb, and so of every class (shapers.py). */
#define HTB_MAJOR 0x5152u
/* IP and TCP headers of a segment with the usual options. */
#define HEADERS_BYTES 72
/* TCP's signals are read at most once in so many jiffies. */
#define SIGNAL_JIFFIES 2
/* Of a VLAN tag: priority (3 bits), drop eligible, VLAN (12 bits). */
#define VLAN_PRIORITY_SHIFT 13

/* The clock as of this jiffy: a lower bound of now, at most one tick old. */
static __always_inline u64 tick_now_ns(u64 jiffies)
{
	u32 only = 0;
	struct tick *cached = tick.lookup(&only);
	u64 now_ns;

	if (!cached)
		return bpf_ktime_get_ns();
	now_ns = cached->now_ns;
	if (cached->jiffies == jiffies && now_ns)
		return now_ns;
	now_ns = bpf_ktime_get_ns();
	/* The order matters to a reader on another CPU: an old jiffy with a new time is harmless. */
	cached->now_ns = now_ns;
	cached->jiffies = jiffies;
	return now_ns;
}

static __always_inline void tell(struct flow_cold *c, u32 flow_id, u32 kind, u64 value, u64 now_ns)
{
	u64 last_ns = c->last_event_ns;
	struct qos_event *event;

	if (now_ns - last_ns < QOS_EVENT_INTERVAL_NS)
		return;
#ifdef QOS_WITHOUT_COMPARE_AND_SWAP
	c->last_event_ns = now_ns; /* two CPUs at once may both tell */
#else
	if (__sync_val_compare_and_swap(&c->last_event_ns, last_ns, now_ns) != last_ns)
		return; /* another CPU tells */
#endif
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		count(QOS_COUNTER_EVENT_LOST);
		return;
	}
	event->now_ns = now_ns;
	event->flow_id = flow_id;
	event->kind = kind;
	event->value = value;
	events.ringbuf_submit(event, 0);
}

#include "destinations.bpf.c"

/* Writes the DSCP where it differs, with one store. Packet pointers are invalid afterwards. */
static __always_inline void mark(struct __sk_buff *skb, const struct packet *p, u8 dscp)
{
	u32 header[3];
	u32 bytes;

	if (dsfield_dscp(p->dsfield) == dscp)
		return;
	bytes = dsfield_rewrite((void *)(long)skb->data + p->l3_offset, (void *)(long)skb->data_end, p->family, dscp,
				header);
	if (bytes == 12) {
		if (!bpf_skb_store_bytes(skb, p->l3_offset, header, 12, 0))
			return;
	} else if (bytes == 4) {
		if (!bpf_skb_store_bytes(skb, p->l3_offset, header, 4, 0))
			return;
	}
	count(QOS_COUNTER_STORE_FAILED);
}

/*
 * TCP's own signals and the time of the last packet, at most once in two ticks. The time is a jiffy, which
 * the daemon translates by `tick`: one in nanoseconds would cost flows that send seldom a third cache line.
 */
static __always_inline void refresh(struct bpf_sock *sk, struct flow_hot *h, struct flow_cold *c, u32 flow_id,
				    u64 jiffies)
{
	u64 now_ns = tick_now_ns(jiffies);
	struct bpf_tcp_sock *tcp;

	h->last_jiffies = jiffies;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk || sk->protocol != IPPROTO_TCP)
		return;
	tcp = bpf_tcp_sock(sk);
	if (!tcp)
		return;
	if (tcp->total_retrans > h->retransmits && h->delivered)
		tell(c, flow_id, QOS_EVENT_LOSS, tcp->total_retrans - h->retransmits, now_ns);
	else if (tcp->delivered_ce > h->delivered_ce && h->delivered)
		tell(c, flow_id, QOS_EVENT_CE, tcp->delivered_ce - h->delivered_ce, now_ns);
	h->srtt_us = tcp->srtt_us >> 3;
	h->min_rtt_us = tcp->rtt_min;
	h->retransmits = tcp->total_retrans;
	h->lost = tcp->lost_out;
	h->delivered = tcp->delivered;
	h->delivered_ce = tcp->delivered_ce;
}

struct verdict {
	u64 now_ns;  /* exact if wait_ns is not 0 */
	u64 wait_ns; /* until the packet conforms */
	u8 charged;
};

/*
 * Charges the flow's bucket unless the packet would have to wait longer than `max_wait_ns`. `need_bytes` is
 * what must fit into the bucket now: of a GSO skb, one segment.
 */
static __always_inline void take(struct flow_hot *h, const struct flow_policy *policy_of, u32 bytes, u32 need_bytes,
				 u64 max_wait_ns, u64 jiffies, struct verdict *v)
{
	u64 cost_ns = bucket_cost_ns(bytes, policy_of->ns_per_byte_20);
	u64 need_ns = bucket_cost_ns(need_bytes, policy_of->ns_per_byte_20);
	u64 seen_ns = *(volatile u64 *)&h->tat_ns; /* touch the line before the clock: misses overlap */
	u8 exact = 0;

	v->now_ns = tick_now_ns(jiffies);
	v->charged = 1;
#pragma unroll
	for (int i = 0; i < BUCKET_RETRIES; i++) {
		v->wait_ns = bucket_wait_ns(seen_ns, v->now_ns, need_ns, policy_of->depth_ns);
		if (v->wait_ns && !exact) {
			exact = 1;
			v->now_ns = bpf_ktime_get_ns();
			v->wait_ns = bucket_wait_ns(seen_ns, v->now_ns, need_ns, policy_of->depth_ns);
		}
		if (v->wait_ns > max_wait_ns) {
			v->charged = 0;
			return;
		}
		if (bucket_charge(&h->tat_ns, seen_ns, v->now_ns, cost_ns))
			return;
		seen_ns = *(volatile u64 *)&h->tat_ns;
	}
	/* Never seen with two CPUs. The state moves on by exactly this packet's cost, whoever else charges. */
	__sync_fetch_and_add(&h->tat_ns, cost_ns);
	count(QOS_COUNTER_CONTENTION);
}

static __always_inline int drop(struct flow_cold *c, u32 flow_id, u32 reason, u32 bytes, u32 segments, u64 now_ns)
{
	__sync_fetch_and_add(&c->dropped_packets[reason], segments);
	__sync_fetch_and_add(&c->dropped_bytes[reason], bytes);
	tell(c, flow_id, QOS_EVENT_DROPPED, reason, now_ns);
	return TC_ACT_SHOT;
}

#include "policy.bpf.c"

/* Writes the 802.1p priority; 0 where the packet lost its tag by it, and must not go on. */
static __always_inline int prioritise(struct __sk_buff *skb, enum shaper shaper, u8 priority)
{
	u32 tag = skb->vlan_tci;
	u16 type_be = skb->vlan_proto;

	if (shaper != SHAPER_HTB)
		skb->priority = priority;
	if (!skb->vlan_present || tag >> VLAN_PRIORITY_SHIFT == priority)
		return 1;
	if (bpf_skb_vlan_pop(skb)) {
		count(QOS_COUNTER_STORE_FAILED);
		return 1;
	}
	tag = (tag & ((1 << VLAN_PRIORITY_SHIFT) - 1)) | (u32)priority << VLAN_PRIORITY_SHIFT;
	if (!bpf_skb_vlan_push(skb, type_be, tag))
		return 1;
	count(QOS_COUNTER_STORE_FAILED);
	return 0;
}

static __always_inline int qos_egress(struct __sk_buff *skb, enum shaper shaper)
{
	struct bpf_sock *sk = skb->sk;
	struct socket_flow *bound = 0;
	struct ruleset in_force = {};
	struct flow_policy *policy_of;
	struct flow_hot *h;
	struct flow_cold *c;
	struct packet packet = {};
	u32 flow_id, slot, bytes, segments;
	u64 jiffies;
	u8 dscp, by_destination;
	int error;

	if (sk)
		bound = sockets.sk_storage_get(sk, 0, 0);
	if (!bound) { /* nobody registered it; also a SYN-ACK, whose socket is not full yet; or forwarded */
		u32 only = 0;
		u64 *now = (u64 *)ruleset.lookup(&only);

		if (!now)
			return TC_ACT_UNSPEC;
		*(u64 *)&in_force = *(volatile u64 *)now; /* it may be replaced at any moment, as a whole */
		if (!in_force.count || (!sk && !(in_force.flags & QOS_RULESET_FORWARDED)))
			return TC_ACT_UNSPEC;
	}

	error = packet_network((void *)(long)skb->data, (void *)(long)skb->data_end, QOS_LINK_BYTES, &packet);
	if (error < 0) {
		count(-error);
		return TC_ACT_UNSPEC;
	}
	by_destination =
		bound ? bound->first_family || bound->flags & QOS_SOCKET_DESTINATIONS : is_by_peer(sk, in_force.flags);
	if (by_destination) {
		error = packet_destination((void *)(long)skb->data, (void *)(long)skb->data_end, &packet);
		if (error < 0) {
			count(-error);
			return TC_ACT_UNSPEC;
		}
	}
	if (bound) {
		flow_id = by_destination ? flow_of_destination(skb, bound, &packet) : bound->flow_id;
		if (!flow_id) {
			count(QOS_COUNTER_NO_DESTINATION);
			goto restore;
		}
	} else {
		flow_id = flow_of_policy(skb, sk, &in_force, &packet);
		if (flow_id == UNDECIDED)
			return decide(skb, shaper);
		if (!flow_id)
			return TC_ACT_UNSPEC;
	}

	slot = flow_id & QOS_SLOT_MASK;
	policy_of = policy.lookup(&slot);
	h = hot.lookup(&slot);
	c = cold.lookup(&slot);
	if (!policy_of || !h || !c) {
		count(QOS_COUNTER_SLOT_RANGE);
		return TC_ACT_UNSPEC;
	}
	if (policy_of->flow_id != flow_id) { /* the flow has ended; its sockets need not be searched for */
		count(QOS_COUNTER_STALE_FLOW);
		goto restore;
	}

	segments = skb->gso_segs ? skb->gso_segs : 1;
	bytes = packet_ip_bytes(skb->wire_len, segments, packet.l3_offset);
	jiffies = bpf_jiffies64();
	dscp = policy_of->dscp;

	if (policy_of->action != QOS_ACTION_NONE) {
		struct verdict v;
		u64 max_wait_ns = 0;

		if (policy_of->action == QOS_ACTION_DELAY && shaper != SHAPER_POLICE)
			max_wait_ns = QOS_HORIZON_NS;
		/* Headers rounded up: to divide by the number of segments costs more than the rest of the bucket. */
		take(h, policy_of, bytes, segments > 1 ? skb->gso_size + HEADERS_BYTES : bytes, max_wait_ns, jiffies,
		     &v);
		if (policy_of->action == QOS_ACTION_REMARK) {
			if (v.wait_ns) {
				dscp = policy_of->non_conformant_dscp;
				__sync_fetch_and_add(&h->non_conformant_bytes, bytes);
				__sync_fetch_and_add(&h->non_conformant_packets, segments);
				tell(c, flow_id, QOS_EVENT_REMARKED, bytes, v.now_ns);
			}
		} else if (shaper == SHAPER_POLICE) {
			if (v.wait_ns)
				return drop(c, flow_id, QOS_DROP_POLICE, bytes, segments, v.now_ns);
		} else {
			if (shaper == SHAPER_FQ && !v.charged)
				return drop(c, flow_id, QOS_DROP_HORIZON, bytes, segments, v.now_ns);
			if (v.wait_ns) {
				__sync_fetch_and_add(&c->delayed_packets, segments);
				__sync_fetch_and_add(&c->delay_ns, v.wait_ns * segments);
				tell(c, flow_id, QOS_EVENT_DELAYED, v.wait_ns, v.now_ns);
			}
			if (shaper == SHAPER_FQ) {
				/* TCP's own pacing may ask for later still. */
				if (v.wait_ns && v.now_ns + v.wait_ns > skb->tstamp)
					skb->tstamp = v.now_ns + v.wait_ns;
			} else if (policy_of->htb_minor) {
				skb->priority = HTB_MAJOR << 16 | policy_of->htb_minor;
			}
		}
	}

	__sync_fetch_and_add(&h->bytes, bytes);
	__sync_fetch_and_add(&h->packets, segments);
	if ((u32)jiffies - h->last_jiffies >= SIGNAL_JIFFIES)
		refresh(sk, h, c, flow_id, jiffies);
	if (policy_of->flags & QOS_POLICY_MARK)
		mark(skb, &packet, dscp);
	if (policy_of->flags & QOS_POLICY_PRIORITY && !prioritise(skb, shaper, policy_of->priority))
		return TC_ACT_SHOT;
	if (policy_of->flags & QOS_POLICY_MARK)
		return TC_ACT_UNSPEC;
restore:
	/* No flow speaks for this packet, but the daemon preset the socket's DSCP for one: put the old one back. */
	PACKET_OPAQUE(bound); /* or its test is merged with that of a flag, which verifiers before 5.12 do not follow */
	if (bound && bound->flags & QOS_SOCKET_PRESET && dsfield_dscp(packet.dsfield) == bound->preset_dscp &&
	    bound->preset_dscp != bound->original_dscp) {
		count(QOS_COUNTER_RESTORED);
		mark(skb, &packet, bound->original_dscp);
	}
	return TC_ACT_UNSPEC;
}

#include "decide.bpf.c"

int qos_fq(struct __sk_buff *skb)
{
	return qos_egress(skb, SHAPER_FQ);
}

int qos_htb(struct __sk_buff *skb)
{
	return qos_egress(skb, SHAPER_HTB);
}

int qos_police(struct __sk_buff *skb)
{
	return qos_egress(skb, SHAPER_POLICE);
}

#include "creation.bpf.c"
