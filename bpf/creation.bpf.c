// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Programs at the creation of sockets, which packets pay nothing for. Part of qos.bpf.c.
 */

/*
 * At the creation of a socket in a cgroup that this program is attached to (`qos2 run`): the socket
 * joins the flow of the nearest cgroup that has one. Packets of other sockets pay nothing for it.
 */
int qos_sock_create(struct bpf_sock *sk)
{
	struct socket_flow value = {};
	u32 *flow_id = 0;
	u64 cgroup;

	if (sk->protocol != IPPROTO_TCP && sk->protocol != IPPROTO_UDP)
		return 1;
#pragma unroll
	for (int level = 15; level >= 0; level--) {
		cgroup = bpf_get_current_ancestor_cgroup_id(level);
		if (!cgroup)
			continue;
		flow_id = cgroups.lookup(&cgroup);
		if (flow_id)
			break;
	}
	if (!flow_id)
		return 1;
	value.flow_id = *flow_id;
	count(sockets.sk_storage_get(sk, &value, BPF_SK_STORAGE_GET_F_CREATE) ? QOS_COUNTER_CGROUP_SOCKETS :
										QOS_COUNTER_CGROUP_FAILED);
	return 1;
}

/*
 * At the creation of any socket of the host, attached to the root cgroup only while rules name executables:
 * notes who makes it. Accepted sockets inherit it.
 */
int qos_sock_owner(struct bpf_sock *sk)
{
	struct owner value = {};
	u32 *executable;

	if (sk->protocol != IPPROTO_TCP && sk->protocol != IPPROTO_UDP)
		return 1;
	value.tgid = bpf_get_current_pid_tgid() >> 32;
	executable = executables.lookup(&value.tgid);
	if (executable)
		value.executable = *executable;
	owners.sk_storage_get(sk, &value, BPF_SK_STORAGE_GET_F_CREATE);
	return 1;
}
