/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The layout of every map key, map value and event: THE source. controlplane/qos2/datapath/abi.py
 * mirrors it; a test compares the two with the debug information that clang writes, and the loader
 * compares them again with what bcc compiled.
 *
 * Rules: no implicit padding (asserted), units in the names, network byte order only where a name
 * says so. One writer per map: the daemon writes `policy`, `sockets`, `destinations`, `cgroups`, `ruleset`,
 * `rules`, `pools` and `executables`, packets write `hot`, `cold`, `fragments`, `tick`, `counters`, `decisions`,
 * `connections`, `buckets` and `drawn`.
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

#define QOS_ABI_VERSION 2

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
	QOS_POLICY_MARK = 1,	 /* write `dscp`; without it the DSCP stays as the application set it */
	QOS_POLICY_PRIORITY = 2, /* write `priority`; without it 802.1p stays as it is */
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
	u16 htb_minor;		/* class of this flow on devices shaped by htb; 0: none */
	u8 priority;		/* 802.1p, 0..7 */
	u8 reserved;
	u32 last_flow_id; /* the daemon's memory of this slot: its next flow must get another generation */
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

/*
 * The administrator's policy: `rules` in order of decision, in two banks of which one is in force. What
 * they say of a socket is kept in its storage (`decisions`), what they say of a connection without such
 * storage, or of a further one of the same socket, in `connections`.
 */
#define QOS_RULES 4096
/* So many are gone through at once, before the first of them that matches is taken. */
#define QOS_RULES_AT_ONCE 16
/* Depth of the cgroup hierarchy that rules can tell apart. */
#define QOS_CGROUP_LEVELS 16

enum qos_ruleset_flags {
	/* What some rule looks at. Of what none looks at, a decision need not be made anew. */
	QOS_RULESET_FORWARDED = 1,    /* packets without a socket */
	QOS_RULESET_PEERS = 2,	      /* addresses or the remote port: an unconnected socket has several */
	QOS_RULESET_DEVICE = 4,	      /* the device by which a packet leaves */
	QOS_RULESET_DSCP = 8,	      /* the DSCP that the application set */
	QOS_RULESET_EXECUTABLES = 16, /* who made the socket */
};

/* Array `ruleset`, one entry: replaced by one store of 8 bytes. */
struct ruleset {
	u32 generation; /* of the decisions that are valid */
	u16 count;	/* of rules; 0: no packet without a flow is looked at */
	u8 bank;	/* of `rules`, 0 or 1 */
	u8 flags;	/* enum qos_ruleset_flags */
};
QOS_SIZE(struct ruleset, 8);

enum qos_traffic {
	QOS_TRAFFIC_LOCAL = 1,
	QOS_TRAFFIC_FORWARDED = 2,
};

/* Who shares a rule's contract. */
enum qos_bucket {
	QOS_BUCKET_SHARED = 1,
	QOS_BUCKET_SOCKET = 2, /* each socket draws a flow of its own; forwarded: each connection */
	QOS_BUCKET_HOST = 3,   /* each remote host */
	QOS_BUCKET_NONE = 4,   /* of the entry behind the last rule, which everything matches: no rule does */
};

/*
 * One way of matching a rule. Values hold where their mask has bits, so a mask of 0 is no condition; a value
 * has no bits outside of its mask. Which of them are conditions is nowhere asked: match.h has no branches.
 */
struct rule {
	u32 local_be[4]; /* IPv4 in [0] */
	u32 local_mask_be[4];
	u32 remote_be[4];
	u32 remote_mask_be[4];
	u32 uid;
	u32 ifindex;
	u32 uid_mask;
	u32 ifindex_mask;
	u32 executable; /* key of its path, never 0 */
	u8 protocol;
	u8 family; /* 4 or 6 */
	u8 dscp;
	u8 traffic; /* enum qos_traffic */
	u32 executable_mask;
	u8 protocol_mask;
	u8 family_mask;
	u8 dscp_mask;
	u8 traffic_mask;
	u64 netns_cookie;     /* 0: any */
	u64 cgroup_id;	      /* the socket's ancestor at `cgroup_level`; 0: any */
	u16 local_port_first; /* 0 .. 65535: any; from 1 on: packets without ports do not match */
	u16 local_port_last;
	u16 remote_port_first;
	u16 remote_port_last;
	/* The act, read as one word. */
	u32 flow_id;	 /* 0: leave the packet alone */
	u16 pool;	 /* index in `pools`, where `bucket` needs it */
	u8 bucket;	 /* enum qos_bucket, never 0 */
	u8 cgroup_level; /* 1 .. QOS_CGROUP_LEVELS - 1; 0: any cgroup */
};
QOS_SIZE(struct rule, 128);

/* Array `rules`: the blocks of bank 0, then those of bank 1. The rule behind the last one has QOS_BUCKET_NONE. */
#define QOS_RULE_BLOCKS 257 /* of one bank */
struct rule_block {
	struct rule rules[QOS_RULES_AT_ONCE];
};
QOS_SIZE(struct rule_block, 128 * QOS_RULES_AT_ONCE);
_Static_assert(QOS_RULE_BLOCKS == QOS_RULES / QOS_RULES_AT_ONCE + 1, "room for one more rule");

/* What a decision is about, and key of LRU hash `connections` (value: struct decided). Fields that no rule looks at are 0. */
struct connection {
	u64 cookie;	 /* of the socket; forwarded: of the network namespace, where the kernel tells it */
	u32 local_be[4]; /* IPv4 in [0] */
	u32 remote_be[4];
	u16 local_port;
	u16 remote_port;
	u32 ifindex;
	u8 protocol;
	u8 family;  /* 4 or 6 */
	u8 dscp;    /* as the application set it */
	u8 traffic; /* enum qos_traffic */
	u32 reserved;
};
QOS_SIZE(struct connection, 56);

struct decided {
	u32 generation; /* of the ruleset that was asked */
	u32 flow_id;	/* 0: left alone */
};
QOS_SIZE(struct decided, 8);

/* Value of socket storage `decisions`: the socket's first connection. One cache line. */
struct decision {
	struct connection of;
	struct decided decided;
};
QOS_SIZE(struct decision, 64);

/* Per-CPU array `deciding`, one entry: everything that rules can look at, the last fields in their order there. */
struct facts {
	struct connection of;		   /* `ifindex` and `dscp` are below */
	u64 netns_cookie;		   /* 0: not known */
	u64 cgroup_ids[QOS_CGROUP_LEVELS]; /* ancestors by level; [0] is 0 */
	u32 uid;			   /* all bits: not known */
	u32 ifindex;
	u32 executable; /* 0: not known */
	u8 protocol;
	u8 family;
	u8 dscp;
	u8 traffic;
	u32 shaper; /* whose program asks */
	u32 reserved;
};
QOS_SIZE(struct facts, 216);

#define QOS_POOLS      256
#define QOS_POOL_FLOWS 1024

/* Array `pools`: flows that are ready to be drawn; the one drawn as number n stands at n modulo QOS_POOL_FLOWS. */
struct pool {
	u64 prepared; /* how many have been put in so far; written last */
	u32 flow_ids[QOS_POOL_FLOWS];
};
QOS_SIZE(struct pool, 8 + 4 * QOS_POOL_FLOWS);

/* Array `drawn`, by the index of the pool. */
struct drawn {
	u64 flows; /* how many have been drawn so far */
};
QOS_SIZE(struct drawn, 8);

/* Key of LRU hash `buckets` (value: u32 flow id): who has drawn a flow, found again by later rulesets. */
struct bucket_owner {
	u32 pool;
	u32 kind;   /* 0: a socket; 4, 6: a host; 0x14, 0x16: a forwarded connection */
	u32 who[4]; /* cookie, address, or what tells connections apart */
};
QOS_SIZE(struct bucket_owner, 24);

/* Value of socket storage `owners`: who made the socket. */
struct owner {
	u32 tgid;
	u32 executable; /* key of its path, once known */
};
QOS_SIZE(struct owner, 8);

/* Array `tick`, one entry: the clock as of the current jiffy, a lower bound of now. */
struct tick {
	u64 jiffies;
	u64 now_ns;
};
QOS_SIZE(struct tick, 16);

/* Index of per-CPU array `counters`: every way in which the datapath did not do the usual. */
enum qos_counter {
	QOS_COUNTER_STALE_FLOW = 0,	   /* the socket's flow has ended: passed untouched */
	QOS_COUNTER_NO_DESTINATION = 1,	   /* the socket has flows, none for this destination: passed untouched */
	QOS_COUNTER_FRAGMENT_MISS = 2,	   /* later fragment of a datagram whose first was not seen */
	QOS_COUNTER_NOT_IP = 3,		   /* neither IPv4 nor IPv6 */
	QOS_COUNTER_TRUNCATED = 4,	   /* shorter than its headers say */
	QOS_COUNTER_EXTENSION_LIMIT = 5,   /* more IPv6 extension headers than are walked */
	QOS_COUNTER_SLOT_RANGE = 6,	   /* flow id beyond the map */
	QOS_COUNTER_STORE_FAILED = 7,	   /* bpf_skb_store_bytes refused: left unmarked */
	QOS_COUNTER_CONTENTION = 8,	   /* bucket charged without compare-and-swap after its retries */
	QOS_COUNTER_EVENT_LOST = 9,	   /* ring buffer full */
	QOS_COUNTER_FRAGMENT_STORE = 10,   /* table of fragments refused an entry */
	QOS_COUNTER_CGROUP_SOCKETS = 11,   /* sockets bound at creation by their cgroup */
	QOS_COUNTER_CGROUP_FAILED = 12,	   /* socket storage refused at creation */
	QOS_COUNTER_RESTORED = 13,	   /* preset DSCP put back on a packet of a flow that has ended */
	QOS_COUNTER_POLICY_DECISIONS = 14, /* rules were gone through for a socket or a connection */
	QOS_COUNTER_POLICY_NONE = 15,	   /* of these, no rule matched */
	QOS_COUNTER_POOL_EMPTY = 16,	   /* no prepared flow was left: the rule's shared flow was taken */
	QOS_COUNTER_DECISION_FAILED = 17,  /* a decision could not be kept: the next packet is decided anew */
	QOS_COUNTERS = 24,
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
