/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The programs that the datapath is measured against, appended to its source text: the empty program,
 * the reference, and the datapath under a test run, whose socket no process can register.
 *
 * The reference is what a plain classifier does at least: parse, one lookup by 5-tuple, one count.
 * Programs come in pairs, with and without the datapath, so that what the measuring itself costs
 * (a random slot, a flipped policy) is subtracted.
 */
struct bench_tuple {
	u32 saddr, daddr;
	u16 sport, dport;
	u8 protocol;
} __attribute__((packed));

struct bench_random {
	u64 state;
	u64 flows;
};

QOS_TABLE("hash", struct bench_tuple, u64, bench_flows, 131072, 0);
QOS_TABLE("array", u32, struct bench_random, bench_random, 1, 0);

int bench_empty(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

static __always_inline int bench_parse(struct __sk_buff *skb, struct bench_tuple *key)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = data;
	struct iphdr *ip = data + sizeof(*ethernet);
	u16 *port;

	if ((void *)(ip + 1) > data_end || ethernet->h_proto != PACKET_BE16(ETH_P_IP))
		return 0;
	port = (void *)ip + ip->ihl * 4;
	if ((void *)(port + 2) > data_end)
		return 0;
	key->saddr = ip->saddr;
	key->daddr = ip->daddr;
	key->sport = port[0];
	key->dport = port[1];
	key->protocol = ip->protocol;
	return 1;
}

int bench_reference(struct __sk_buff *skb)
{
	struct bench_tuple key = {};
	u64 *packets;

	if (!bench_parse(skb, &key))
		return TC_ACT_UNSPEC;
	packets = bench_flows.lookup(&key);
	if (packets)
		__sync_fetch_and_add(packets, 1);
	return TC_ACT_UNSPEC;
}

/* A test run makes a socket of its own for each call: its first repetition registers it with flow 1. */
static __always_inline struct socket_flow *bench_registered(struct __sk_buff *skb)
{
	struct socket_flow value = {.flow_id = 1};
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return 0;
	return sockets.sk_storage_get(sk, &value, BPF_SK_STORAGE_GET_F_CREATE);
}

int bench_flow(struct __sk_buff *skb)
{
	if (!skb->mark) {
		skb->mark = 1;
		bench_registered(skb);
	}
	return qos_egress(skb, SHAPER_FQ);
}

/* Another DSCP for each packet. */
static __always_inline void bench_flip(struct __sk_buff *skb)
{
	u32 slot = 1;
	struct flow_policy *policy_of = policy.lookup(&slot);

	if (!skb->mark) {
		skb->mark = 1;
		bench_registered(skb);
	}
	if (policy_of)
		policy_of->dscp ^= 8;
}

int bench_flip_flow(struct __sk_buff *skb)
{
	bench_flip(skb);
	return qos_egress(skb, SHAPER_FQ);
}

int bench_flip_only(struct __sk_buff *skb)
{
	bench_flip(skb);
	return TC_ACT_UNSPEC;
}

/* The next of `flows` numbers, which depends on what the last repetition wrote: no two of them overlap. */
static __always_inline u32 bench_next(struct bench_random *random, u64 written)
{
	random->state = random->state * 6364136223846793005ull + 1442695040888963407ull + (written >> 63);
	return (u32)((random->state >> 32) * random->flows >> 32);
}

static __always_inline int bench_spread(struct __sk_buff *skb, int with_datapath)
{
	u32 only = 0, last, slot;
	struct bench_random *random = bench_random.lookup(&only);
	struct socket_flow *bound = bench_registered(skb);
	struct flow_hot *written;

	if (!random || !bound)
		return TC_ACT_UNSPEC;
	last = with_datapath ? bound->flow_id : 1;
	written = hot.lookup(&last);
	if (!written)
		return TC_ACT_UNSPEC;
	slot = 1 + bench_next(random, written->packets);
	bound->flow_id = slot;
	return with_datapath ? qos_egress(skb, SHAPER_FQ) : TC_ACT_UNSPEC;
}

int bench_spread_flow(struct __sk_buff *skb)
{
	return bench_spread(skb, 1);
}

int bench_spread_only(struct __sk_buff *skb)
{
	return bench_spread(skb, 0);
}

/* The reference over `flows` keys: the source address counts from 0 in network order of this machine. */
static __always_inline int bench_tuples(struct __sk_buff *skb, int with_lookup)
{
	u32 only = 0;
	struct bench_random *random = bench_random.lookup(&only);
	struct bench_tuple key = {};
	u64 *packets;

	if (!random)
		return TC_ACT_UNSPEC;
	if (!with_lookup) {
		skb->mark = bench_next(random, skb->mark);
		return TC_ACT_UNSPEC;
	}
	if (!bench_parse(skb, &key))
		return TC_ACT_UNSPEC;
	key.saddr = bench_next(random, skb->mark);
	packets = bench_flows.lookup(&key);
	if (packets)
		skb->mark = __sync_fetch_and_add(packets, 1) >> 63;
	return TC_ACT_UNSPEC;
}

int bench_tuples_reference(struct __sk_buff *skb)
{
	return bench_tuples(skb, 1);
}

int bench_tuples_only(struct __sk_buff *skb)
{
	return bench_tuples(skb, 0);
}
