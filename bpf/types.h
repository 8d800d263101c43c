/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The layout of every map key, map value and event: THE source. controlplane/qos2/datapath/abi.py
 * mirrors it; a test compares the two with the debug information that clang writes, and the loader
 * compares them again with what bcc compiled.
 *
 * Rules: no implicit padding (asserted), units in the names, network byte order only where a name
 * says so. One writer per map: the daemon writes `policy`, `sockets`, `destinations` and `cgroups`,
 * packets write `hot`, `cold`, `fragments`, `tick` and `counters`.
 */
#ifndef QOS_TYPES_H
#define QOS_TYPES_H

#ifdef __KERNEL__
#include <uapi/linux/types.h>
#else
#include <stdint.h>
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;
#endif

#define QOS_ABI_VERSION 1

/* FlowId = generation (12 bits) << 20 | slot (20 bits). Slot 0 is never given out, so an id is never 0. */
#define QOS_SLOT_BITS 20
#define QOS_SLOT_MASK ((1u << QOS_SLOT_BITS) - 1)

#define QOS_SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), "size of " #type)

/* What a rate contract does with a packet that comes too early. */
enum qos_action {
	QOS_ACTION_NONE = 0,   /* no rate */
	QOS_ACTION_DELAY = 1,  /* held back until it conforms (ShapeOnly, ShapeAndMark) */
	QOS_ACTION_REMARK = 2, /* sent at once with the non-conformant DSCP (UseNonConformantMarkings) */
};

enum qos_policy_flags {
	QOS_POLICY_MARK = 1, /* write `dscp`; without it the DSCP stays as the application set it */
};

/* What the daemon decides about a flow. Written with plain stores into the mapped array; `flow_id`
 * last when a flow begins, first (to 0) when it ends. */
struct flow_policy {
	u32 flow_id;		/* 0: no flow in this slot */
	u8 dscp;		/* 0..63 */
	u8 non_conformant_dscp; /* 0..63 */
	u8 action;		/* enum qos_action */
	u8 flags;		/* enum qos_policy_flags */
	u64 ns_per_byte_20;	/* inverse rate, ns per byte at IP level << 20; 0: no rate */
	u64 depth_ns;		/* bucket depth as time at that rate */
	u32 htb_minor;		/* class of this flow on devices shaped by htb; 0: none */
	u32 last_flow_id;	/* the daemon's memory of this slot: its next flow must get another generation */
};
QOS_SIZE(struct flow_policy, 32);

/* What packets change on each packet: one cache line. */
struct flow_hot {
	u64 tat_ns;		  /* theoretical arrival time of the bucket (GCRA), CLOCK_MONOTONIC */
	u64 bytes;		  /* IP level, headers included, every GSO segment with its own */
	u64 packets;		  /* segments */
	u64 non_conformant_bytes; /* sent with the non-conformant DSCP */
	u32 non_conformant_packets;
	u32 last_jiffies; /* low 32 bits of jiffies at the last refresh of the fields below: the last packet */
	u32 srtt_us;	  /* TCP: smoothed round trip time */
	u32 min_rtt_us;	  /* TCP: least round trip time of the kernel's window */
	u32 retransmits;  /* TCP: total_retrans of the socket that sent last */
	u32 lost;	  /* TCP: lost_out */
	u32 delivered;	  /* TCP: segments delivered */
	u32 delivered_ce; /* TCP: of these, echoed as CE */
};
QOS_SIZE(struct flow_hot, 64);

/* Why the datapath dropped a packet of a flow. */
enum qos_drop {
	QOS_DROP_HORIZON = 0, /* its departure lies beyond the horizon of fq */
	QOS_DROP_POLICE = 1,  /* over the rate on a device that can only police */
	QOS_DROP_REASONS = 2,
};

/* What packets change seldom: one cache line. */
struct flow_cold {
	u64 delayed_packets;
	u64 delay_ns; /* sum over the delayed packets */
	u64 dropped_packets[QOS_DROP_REASONS];
	u64 dropped_bytes[QOS_DROP_REASONS];
	u64 last_event_ns;
	u64 reserved;
};
QOS_SIZE(struct flow_cold, 64);

enum qos_socket_flags {
	/* Shapes of destination that the socket has in `destinations`; only these are looked up. */
	QOS_SOCKET_EXACT = 1,	    /* address and port */
	QOS_SOCKET_ANY_PORT = 2,    /* address, port 0 */
	QOS_SOCKET_ANY_ADDRESS = 4, /* zero address, port */
	QOS_SOCKET_DESTINATIONS = 7,
	/* The daemon preset IP_TOS / IPV6_TCLASS to `preset_dscp`; it was `original_dscp`. */
	QOS_SOCKET_PRESET = 8,
};

/* Value of socket storage `sockets`. The first exact destination lives here, further ones in `destinations`. */
struct socket_flow {
	u32 flow_id;		 /* flow of every destination that is not named; 0: none */
	u32 first_flow_id;	 /* flow of the first named destination */
	u32 first_address_be[4]; /* IPv4 in [0] */
	u16 first_port_be;
	u8 first_family; /* 4 or 6; 0: no destination is named here */
	u8 flags;	 /* enum qos_socket_flags */
	u8 preset_dscp;
	u8 original_dscp;
	u8 reserved[2];
};
QOS_SIZE(struct socket_flow, 32);

/* Key of hash `destinations` (value: u32 flow id): a further destination of a socket. */
struct destination {
	u64 cookie; /* of the socket */
	u32 address_be[4];
	u16 port_be;
	u8 family; /* 4 or 6; 0 with the zero address */
	u8 reserved[5];
};
QOS_SIZE(struct destination, 32);

/* Key of LRU hash `fragments` (value: u32 flow id): later fragments have no port. */
struct fragment {
	u64 cookie;
	u32 address_be[4];
	u32 id; /* of the datagram, as in the packet */
	u32 family;
};
QOS_SIZE(struct fragment, 32);

/* Array `tick`, one entry: the clock as of the current jiffy, a lower bound of now. */
struct tick {
	u64 jiffies;
	u64 now_ns;
};
QOS_SIZE(struct tick, 16);

/* Index of per-CPU array `counters`: every way in which the datapath did not do the usual. */
enum qos_counter {
	QOS_COUNTER_STALE_FLOW = 0,	 /* the socket's flow has ended: passed untouched */
	QOS_COUNTER_NO_DESTINATION = 1,	 /* the socket has flows, none for this destination: passed untouched */
	QOS_COUNTER_FRAGMENT_MISS = 2,	 /* later fragment of a datagram whose first was not seen */
	QOS_COUNTER_NOT_IP = 3,		 /* neither IPv4 nor IPv6 */
	QOS_COUNTER_TRUNCATED = 4,	 /* shorter than its headers say */
	QOS_COUNTER_EXTENSION_LIMIT = 5, /* more IPv6 extension headers than are walked */
	QOS_COUNTER_SLOT_RANGE = 6,	 /* flow id beyond the map */
	QOS_COUNTER_STORE_FAILED = 7,	 /* bpf_skb_store_bytes refused: left unmarked */
	QOS_COUNTER_CONTENTION = 8,	 /* bucket charged without compare-and-swap after its retries */
	QOS_COUNTER_EVENT_LOST = 9,	 /* ring buffer full */
	QOS_COUNTER_FRAGMENT_STORE = 10, /* table of fragments refused an entry */
	QOS_COUNTER_CGROUP_SOCKETS = 11, /* sockets bound at creation by their cgroup */
	QOS_COUNTER_CGROUP_FAILED = 12,	 /* socket storage refused at creation */
	QOS_COUNTER_RESTORED = 13,	 /* preset DSCP put back on a packet of a flow that has ended */
	QOS_COUNTERS = 16,
};

/* Kinds of ring buffer event. */
enum qos_event_kind {
	QOS_EVENT_DELAYED = 1,	/* the flow began to be held back */
	QOS_EVENT_DROPPED = 2,	/* the datapath dropped; `value` = enum qos_drop */
	QOS_EVENT_REMARKED = 3, /* the flow exceeds its rate and is remarked */
	QOS_EVENT_LOSS = 4,	/* TCP: retransmits grew; `value` = by how many */
	QOS_EVENT_CE = 5,	/* TCP: CE echoes grew; `value` = by how many */
};

struct qos_event {
	u64 now_ns;
	u32 flow_id;
	u32 kind;
	u64 value;
};
QOS_SIZE(struct qos_event, 24);

/* At most one event per flow in this time. */
#define QOS_EVENT_INTERVAL_NS 100000000ull
/* fq drops or caps what departs later than its own horizon (10 s by default): stay below it. */
#define QOS_HORIZON_NS 9000000000ull

#endif
