// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * What the rules said of a packet whose socket nobody registered: kept decisions, looked up by each such
 * packet. Where there is none, decide.bpf.c goes through the rules. Part of qos.bpf.c.
 */

/* Whether this flow goes on; 0 does: it is that of what is left alone. */
static __always_inline int is_live(u32 flow_id)
{
	u32 slot = flow_id & QOS_SLOT_MASK;
	struct flow_policy *policy_of = policy.lookup(&slot);

	return !flow_id || (policy_of && policy_of->flow_id == flow_id);
}

/* Who sends the fragments of a datagram; without a socket, its address. */
static __always_inline u64 sender_of(const struct connection *of)
{
	u64 high = of->local_be[1] ^ of->local_be[3];

	if (of->traffic == QOS_TRAFFIC_LOCAL)
		return of->cookie;
	return ~(high << 32 | (of->local_be[0] ^ of->local_be[2])); /* cookies count up from 1 */
}

/* The connection of a packet whose destination has been read; returns as packet_network(). */
static __always_inline int connection_of(struct __sk_buff *skb, const struct packet *p, struct connection *of)
{
	__builtin_memcpy(of->remote_be, p->address_be, sizeof(of->remote_be));
	of->local_port = PACKET_BE16(p->source_port_be);
	of->remote_port = PACKET_BE16(p->port_be);
	of->protocol = p->protocol;
	of->family = p->family;
	return packet_source((void *)(long)skb->data, (void *)(long)skb->data_end, p, of->local_be);
}

/* What no ruleset with these flags looks at is 0 in a kept decision, and does not make a new one necessary. */
static __always_inline u8 is_by_peer(struct bpf_sock *sk, u8 flags)
{
	return !sk || flags & QOS_RULESET_PEERS;
}

/*
 * What was decided about an unregistered packet: its flow, 0 if it is left alone, UNDECIDED. Decisions are of a socket
 * where no rule looks at its peers, else of one connection: then the packet's destination has been read.
 */
static __always_inline u32 flow_of_policy(struct __sk_buff *skb, struct bpf_sock *sk, const struct ruleset *in_force,
					  const struct packet *p)
{
	u8 by_peer = is_by_peer(sk, in_force->flags);
	struct fragment datagram = {};
	struct connection of = {};
	struct decision *kept = 0;
	struct decided *found = 0;
	u32 flow_id;

	of.traffic = sk ? QOS_TRAFFIC_LOCAL : QOS_TRAFFIC_FORWARDED;
	if (in_force->flags & QOS_RULESET_DEVICE)
		of.ifindex = skb->ifindex;
	if (in_force->flags & QOS_RULESET_DSCP)
		of.dscp = dsfield_dscp(p->dsfield);
	if (by_peer && connection_of(skb, p, &of) < 0) {
		count(QOS_COUNTER_TRUNCATED);
		return 0;
	}
	if (sk)
		kept = decisions.sk_storage_get(sk, 0, 0);
	if (kept && kept->decided.generation == in_force->generation && match_same(&kept->of, &of)) {
		found = &kept->decided;
	}
	if (!found || p->fragment != PACKET_WHOLE) {
		of.cookie = sk ? socket_cookie(skb) : netns_cookie(skb);
		if (p->fragment == PACKET_LATER) { /* only by peer: else the walk that tells it was not made */
			datagram_of(sender_of(&of), p, &datagram);
			return flow_of_fragment(&datagram);
		}
		if (!found)
			found = connections.lookup(&of);
	}
	if (!found || found->generation != in_force->generation)
		return UNDECIDED;
	flow_id = found->flow_id;
	if (!is_live(flow_id))
		return UNDECIDED;
	if (p->fragment == PACKET_FIRST) {
		datagram_of(sender_of(&of), p, &datagram);
		if (fragments.update(&datagram, &flow_id))
			count(QOS_COUNTER_FRAGMENT_STORE);
	}
	return flow_id;
}

/* Has the rules gone through, after which the program of this shaper begins again. */
static __always_inline int decide(struct __sk_buff *skb, enum shaper shaper)
{
	u32 only = 0;
	struct facts *f = deciding.lookup(&only);

	if (f) {
		f->shaper = shaper;
		stages.call(skb, STAGES + STAGE_DECIDE); /* does not return */
	}
	count(QOS_COUNTER_DECISION_FAILED);
	return TC_ACT_UNSPEC;
}
