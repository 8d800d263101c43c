// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Which flow a packet of a registered socket is of, where that depends on its destination; and which one a later
 * fragment is of, which has no port to tell it. Part of qos.bpf.c.
 */

/* The datagram that a fragment is of. `cookie`: who sent it. */
static __always_inline void datagram_of(u64 cookie, const struct packet *p, struct fragment *datagram)
{
	datagram->cookie = cookie;
	__builtin_memcpy(datagram->address_be, p->address_be, sizeof(datagram->address_be));
	datagram->id = p->fragment_id;
	datagram->family = p->family;
}

/* The flow of a later fragment, as its first one left it; 0: that was not seen. */
static __always_inline u32 flow_of_fragment(struct fragment *datagram)
{
	u32 *found = fragments.lookup(datagram);

	if (found)
		return *found;
	count(QOS_COUNTER_FRAGMENT_MISS);
	return 0;
}

/* The flow of a socket that names destinations; 0: none of them is this packet's. */
static __always_inline u32 flow_of_destination(struct __sk_buff *skb, struct socket_flow *bound, const struct packet *p)
{
	struct destination key = {};
	struct fragment datagram = {};
	u32 *found, flow_id = 0;

	if (p->fragment != PACKET_WHOLE) {
		datagram_of(socket_cookie(skb), p, &datagram);
		if (p->fragment == PACKET_LATER)
			return flow_of_fragment(&datagram);
	}

	flow_id = bound->flow_id;
	if (bound->first_family == p->family && bound->first_port_be == p->port_be &&
	    bound->first_address_be[0] == p->address_be[0] && bound->first_address_be[1] == p->address_be[1] &&
	    bound->first_address_be[2] == p->address_be[2] && bound->first_address_be[3] == p->address_be[3]) {
		flow_id = bound->first_flow_id;
	} else if (bound->flags & QOS_SOCKET_DESTINATIONS) {
		found = 0;
		key.cookie = socket_cookie(skb);
		__builtin_memcpy(key.address_be, p->address_be, sizeof(key.address_be));
		key.port_be = p->port_be;
		key.family = p->family;
		if (bound->flags & QOS_SOCKET_EXACT)
			found = destinations.lookup(&key);
		if (!found && bound->flags & QOS_SOCKET_ANY_PORT) {
			key.port_be = 0;
			found = destinations.lookup(&key);
			key.port_be = p->port_be;
		}
		if (!found && bound->flags & QOS_SOCKET_ANY_ADDRESS) {
			__builtin_memset(key.address_be, 0, sizeof(key.address_be));
			key.family = 0;
			found = destinations.lookup(&key);
		}
		if (found)
			flow_id = *found;
	}
	if (p->fragment == PACKET_FIRST && fragments.update(&datagram, &flow_id))
		count(QOS_COUNTER_FRAGMENT_STORE);
	return flow_id;
}
