// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * qos_decide: goes through the rules for the first packet of a socket or connection, and keeps what they
 * say. Part of qos.bpf.c, in a program of its own.
 */

/* A prepared flow that nobody had before; 0: none is left. */
static __always_inline u32 draw(u32 index)
{
	struct pool *prepared = pools.lookup(&index);
	struct drawn *so_far = drawn.lookup(&index);
	u64 *drawn_of, number;

	if (!prepared || !so_far)
		return 0;
	drawn_of = &so_far->flows;
#ifdef QOS_WITHOUT_COMPARE_AND_SWAP
	number = *(volatile u64 *)drawn_of;
	if (number >= *(volatile u64 *)&prepared->prepared)
		return 0;
	*(volatile u64 *)drawn_of = number + 1; /* two CPUs at once may share a flow */
	return prepared->flow_ids[number & (QOS_POOL_FLOWS - 1)];
#else
#pragma unroll
	for (int i = 0; i < BUCKET_RETRIES; i++) {
		number = *(volatile u64 *)drawn_of;
		if (number >= *(volatile u64 *)&prepared->prepared)
			return 0;
		if (__sync_val_compare_and_swap(drawn_of, number, number + 1) == number)
			return prepared->flow_ids[number & (QOS_POOL_FLOWS - 1)];
	}
	return 0;
#endif
}

/* The flow of this socket or host by a rule that gives each its own: the one it has, or a prepared one. */
static __always_inline u32 flow_of_bucket(const struct facts *f, u32 pool, u32 bucket)
{
	struct bucket_owner owner = {.pool = pool};
	u32 *found, flow_id;

	if (bucket == QOS_BUCKET_HOST) {
		owner.kind = f->of.family;
		__builtin_memcpy(owner.who, f->of.remote_be, sizeof(owner.who));
	} else if (f->of.traffic == QOS_TRAFFIC_LOCAL) {
		owner.who[0] = (u32)f->of.cookie;
		owner.who[1] = f->of.cookie >> 32;
	} else {
		owner.kind = f->of.family | 0x10;
		owner.who[0] = f->of.local_be[0] ^ f->of.local_be[1] ^ f->of.local_be[2] ^ f->of.local_be[3];
		owner.who[1] = f->of.remote_be[0] ^ f->of.remote_be[1] ^ f->of.remote_be[2] ^ f->of.remote_be[3];
		owner.who[2] = (u32)f->of.local_port << 16 | f->of.remote_port;
		owner.who[3] = f->of.protocol;
	}
	found = buckets.lookup(&owner);
	if (found) {
		flow_id = *found;
		if (is_live(flow_id))
			return flow_id;
		buckets.delete(&owner);
	}
	flow_id = draw(pool);
	if (!flow_id)
		return 0;
	if (buckets.insert(&owner, &flow_id)) { /* another CPU drew for the same one */
		found = buckets.lookup(&owner);
		if (found)
			return *found;
		count(QOS_COUNTER_DECISION_FAILED);
	}
	return flow_id;
}

/* What rules can look at beside the packet. */
static __always_inline void gather(struct __sk_buff *skb, struct bpf_sock *sk, u32 flags, struct facts *f)
{
	struct owner *made_by;
	u32 *executable;

	f->netns_cookie = netns_cookie(skb);
	f->uid = ~0u;
	f->executable = 0;
	/* Of a socket in TIME_WAIT the kernel tells neither. */
	if (sk && sk->state != BPF_TCP_TIME_WAIT)
		f->uid = bpf_get_socket_uid(skb);
#pragma unroll
	for (int level = 1; level < QOS_CGROUP_LEVELS; level++)
		f->cgroup_ids[level] = sk ? bpf_skb_ancestor_cgroup_id(skb, level) : 0;
	if (!sk || !(flags & QOS_RULESET_EXECUTABLES))
		return;
	made_by = owners.sk_storage_get(sk, 0, 0);
	if (!made_by)
		return;
	if (!made_by->executable) {
		executable = executables.lookup(&made_by->tgid);
		if (executable)
			made_by->executable = *executable;
	}
	f->executable = made_by->executable;
}

/* Goes through the rules, all facts gathered: the flow that they give, 0 for none. */
static __always_inline u32 judge(u32 bank, const struct facts *f)
{
	u32 flow_id, bucket;
	u64 act = 0;

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < QOS_RULE_BLOCKS && !act; i++) {
		u32 index = bank * QOS_RULE_BLOCKS + i;
		struct rule_block *block = rules.lookup(&index);

		if (!block)
			return 0;
#pragma clang loop unroll(disable)
		for (u32 j = 0; j < QOS_RULES_AT_ONCE; j++) {
			PACKET_OPAQUE(j); /* or a pointer would count, of which the verifier sees no end */
			act = match_take(act, &block->rules[j], f);
		}
	}
	count(QOS_COUNTER_POLICY_DECISIONS);
	bucket = match_bucket(act);
	if (bucket == QOS_BUCKET_NONE) {
		count(QOS_COUNTER_POLICY_NONE);
		return 0;
	}
	if (bucket == QOS_BUCKET_SOCKET || bucket == QOS_BUCKET_HOST) {
		flow_id = flow_of_bucket(f, match_pool(act), bucket);
		if (flow_id)
			return flow_id;
		count(QOS_COUNTER_POOL_EMPTY);
	}
	return match_flow_id(act);
}

/* Keeps what was decided: in the socket, or by connection if it has none or has another one's already. */
static __always_inline int keep(struct bpf_sock *sk, struct decision *new)
{
	struct decision *old = 0;

	if (sk) {
		old = decisions.sk_storage_get(sk, 0, 0);
		if (!old || old->decided.generation != new->decided.generation || match_same(&old->of, &new->of)) {
			/* Never changed in place: another CPU may be reading it. */
			if (old)
				decisions.sk_storage_delete(sk);
			if (decisions.sk_storage_get(sk, new, BPF_SK_STORAGE_GET_F_CREATE))
				return 1;
		}
	}
	return !connections.update(&new->of, &new->decided);
}

/*
 * A packet of which nothing is decided: goes through the rules, keeps what they say, and lets the program that
 * could not go on begin again. On its own because verifying this part once per shaper would take as often as long.
 */
int qos_decide(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct packet packet = {};
	struct ruleset in_force;
	struct decision new = {};
	struct facts *f;
	u32 only = 0;
	u64 *now;
	int error;

	now = (u64 *)ruleset.lookup(&only);
	f = deciding.lookup(&only);
	if (!now || !f)
		return TC_ACT_UNSPEC;
	*(u64 *)&in_force = *(volatile u64 *)now;
	error = packet_network((void *)(long)skb->data, (void *)(long)skb->data_end, QOS_LINK_BYTES, &packet);
	if (error < 0)
		return TC_ACT_UNSPEC; /* counted before */
	error = packet_destination((void *)(long)skb->data, (void *)(long)skb->data_end, &packet);
	if (!error)
		error = connection_of(skb, &packet, &f->of);
	if (error < 0) {
		count(-error);
		return TC_ACT_UNSPEC;
	}
	f->of.traffic = sk ? QOS_TRAFFIC_LOCAL : QOS_TRAFFIC_FORWARDED;
	/* Its rules have changed between two fragments of a datagram; no rule looks at the remote port. */
	if (sk && packet.fragment == PACKET_LATER)
		f->of.local_port = sk->src_port;
	f->of.cookie = sk ? socket_cookie(skb) : netns_cookie(skb);
	f->ifindex = skb->ifindex;
	f->protocol = packet.protocol;
	f->family = packet.family;
	f->dscp = dsfield_dscp(packet.dsfield);
	f->traffic = f->of.traffic;
	gather(skb, sk, in_force.flags, f);
	new.decided.generation = in_force.generation;
	new.decided.flow_id = judge(in_force.bank & 1, f);
	sk = skb->sk; /* anew: kept, it would have the verifier walk all rules twice, with a socket and without */
	if (!is_live(new.decided.flow_id)) {
		count(QOS_COUNTER_STALE_FLOW);
		return TC_ACT_UNSPEC;
	}
	new.of.cookie = f->of.cookie;
	new.of.traffic = f->of.traffic;
	if (in_force.flags & QOS_RULESET_DEVICE)
		new.of.ifindex = f->ifindex;
	if (in_force.flags & QOS_RULESET_DSCP)
		new.of.dscp = f->dscp;
	if (is_by_peer(sk, in_force.flags)) {
		__builtin_memcpy(new.of.local_be, f->of.local_be, sizeof(new.of.local_be));
		__builtin_memcpy(new.of.remote_be, f->of.remote_be, sizeof(new.of.remote_be));
		new.of.local_port = f->of.local_port;
		new.of.remote_port = f->of.remote_port;
		new.of.protocol = f->of.protocol;
		new.of.family = f->of.family;
	}
	if (keep(sk, &new))
		stages.call(skb, STAGES + (f->shaper & 3)); /* does not return */
	count(QOS_COUNTER_DECISION_FAILED);
	return TC_ACT_UNSPEC;
}
