// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * All maps, helpers that bcc declares wrongly or not at all, and the places in `stages`. Part of qos.bpf.c.
 */

/*
 * From the loader: QOS_SLOTS, QOS_PINS (a folder of bpffs, as a string), QOS_LINK_BYTES (14, or 0 without Ethernet),
 * for kernels before 5.12 QOS_WITHOUT_COMPARE_AND_SWAP, and for those before 6.15 QOS_WITHOUT_NETNS_COOKIE.
 */
#define QOS_TABLE(type, key, value, name, entries, flags) \
	BPF_F_TABLE(type ":" QOS_PINS "/" #name, key, value, name, entries, flags)

QOS_TABLE("array", u32, struct flow_policy, policy, QOS_SLOTS, BPF_F_MMAPABLE);
QOS_TABLE("array", u32, struct flow_hot, hot, QOS_SLOTS, BPF_F_MMAPABLE);
QOS_TABLE("array", u32, struct flow_cold, cold, QOS_SLOTS, BPF_F_MMAPABLE);
QOS_TABLE("hash", struct destination, u32, destinations, QOS_SLOTS, BPF_F_NO_PREALLOC);
QOS_TABLE("lru_hash", struct fragment, u32, fragments, 4096, 0);
QOS_TABLE("hash", u64, u32, cgroups, 4096, 0);
QOS_TABLE("array", u32, struct tick, tick, 1, 0);
QOS_TABLE("percpu_array", u32, u64, counters, QOS_COUNTERS, 0);

QOS_TABLE("prog", int, int, stages, 8, 0);
QOS_TABLE("array", u32, struct ruleset, ruleset, 1, BPF_F_MMAPABLE);
QOS_TABLE("array", u32, struct rule_block, rules, 2 * QOS_RULE_BLOCKS, 0);
QOS_TABLE("lru_hash", struct connection, struct decided, connections, 65536, 0);
QOS_TABLE("percpu_array", u32, struct facts, deciding, 1, 0);
QOS_TABLE("array", u32, struct pool, pools, QOS_POOLS, BPF_F_MMAPABLE);
QOS_TABLE("array", u32, struct drawn, drawn, QOS_POOLS, BPF_F_MMAPABLE);
QOS_TABLE("lru_hash", struct bucket_owner, u32, buckets, 65536, 0);
QOS_TABLE("hash", u32, u32, executables, 32768, BPF_F_NO_PREALLOC);

/* BPF_SK_STORAGE of bcc has no pin and no flags: accepted sockets inherit only with BPF_F_CLONE. */
#define QOS_SOCKET_STORAGE(value, name, map_flags)                                                     \
	struct name##_table_t {                                                                        \
		int key;                                                                               \
		value leaf;                                                                            \
		void *(*sk_storage_get)(void *, void *, int);                                          \
		int (*sk_storage_delete)(void *);                                                      \
		u32 flags;                                                                             \
	};                                                                                             \
	__attribute__((section("maps/sk_storage:" QOS_PINS "/" #name))) struct name##_table_t name = { \
		.flags = BPF_F_NO_PREALLOC | (map_flags),                                              \
	};                                                                                             \
	BPF_ANNOTATE_KV_PAIR(name, int, value)

QOS_SOCKET_STORAGE(struct socket_flow, sockets, BPF_F_CLONE);
QOS_SOCKET_STORAGE(struct decision, decisions, 0);
QOS_SOCKET_STORAGE(struct owner, owners, BPF_F_CLONE);

/* BPF_RINGBUF_OUTPUT of bcc has no pin: the same table with a path. */
struct events_table_t {
	int key;
	int leaf;
	int (*ringbuf_output)(void *, u64, u64);
	void *(*ringbuf_reserve)(u64);
	void (*ringbuf_discard)(void *, u64);
	void (*ringbuf_submit)(void *, u64);
	u64 (*ringbuf_query)(u64);
	u32 max_entries;
};
__attribute__((section("maps/ringbuf:" QOS_PINS "/events"))) struct events_table_t events = {
	.max_entries = 64 * 4096, /* bytes */
};

/* bcc declares the result of this helper as u32 and cuts the cookie. */
static u64 (*socket_cookie)(void *) = (void *)BPF_FUNC_get_socket_cookie;
#ifdef QOS_WITHOUT_NETNS_COOKIE
#define netns_cookie(skb) 0
#else
static u64 (*netns_cookie)(void *) = (void *)122; /* BPF_FUNC_get_netns_cookie, which older headers do not name */
#endif

enum shaper {
	SHAPER_FQ,
	SHAPER_HTB,
	SHAPER_POLICE,
};

/* Of `stages`, for this link layer: the programs of the shapers in their order, and qos_decide. */
#define STAGES	     (QOS_LINK_BYTES ? 0 : 4)
#define STAGE_DECIDE 3
/* Instead of a flow id: slot 2^20 - 1 is never given out. */
#define UNDECIDED 0xffffffffu

static __always_inline void count(u32 name)
{
	u64 *counter = counters.lookup(&name);

	if (counter)
		(*counter)++; /* per CPU */
}
