// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The packet object of callbacks: the connection that a packet belongs to, and
 * rejecting it. See skb.h.
 *
 * Neither needs this module to depend on another. What connection tracking has
 * attached to a packet is read as it is; what answers a packet is looked up when
 * the first hook is registered.
 */
#include <linux/kmod.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <net/netfilter/ipv4/nf_reject.h>
#include <net/netfilter/ipv6/nf_reject.h>
#include <net/netfilter/nf_conntrack.h>

#include "library.h"
#include "skb.h"

/* The packet's connection, or NULL; a template is none. */
static struct nf_conn *packet_connection(const struct sk_buff *skb,
					 enum ip_conntrack_info *info)
{
	struct nf_conn *ct = nf_ct_get(skb, info);

	return ct && !nf_ct_is_template(ct) ? ct : NULL;
}

static const char *connection_state(enum ip_conntrack_info info)
{
	switch (info) {
	case IP_CT_NEW:
		return "new";
	case IP_CT_RELATED:
	case IP_CT_RELATED_REPLY:
		return "related";
	default:
		return "established";
	}
}

/*
 * skb:ctstate(): "new", "established", "related", and "original" or "reply"; or
 * "untracked"; or "invalid", also where nothing tracks connections.
 */
int lunatik_skb_ctstate(lua_State *L)
{
	const struct sk_buff *skb = lunatik_packet_check(L)->skb;
	enum ip_conntrack_info info;

	if (!packet_connection(skb, &info)) {
		lua_pushstring(L, info == IP_CT_UNTRACKED ? "untracked" :
			       "invalid");
		return 1;
	}
	lua_pushstring(L, connection_state(info));
	lua_pushstring(L, CTINFO2DIR(info) == IP_CT_DIR_REPLY ? "reply" :
		       "original");
	return 2;
}

/* skb:connmark([value]): the mark of the packet's connection, or nil without one */
int lunatik_skb_connmark(lua_State *L)
{
	const struct sk_buff *skb = lunatik_packet_check(L)->skb;
	enum ip_conntrack_info info;
	struct nf_conn *ct = packet_connection(skb, &info);
	lua_Integer mark;

	if (!IS_ENABLED(CONFIG_NF_CONNTRACK_MARK))
		return luaL_error(L, "this kernel keeps no marks of connections (CONFIG_NF_CONNTRACK_MARK)");
	if (lua_gettop(L) > 1) {
		mark = luaL_checkinteger(L, 2);
		luaL_argcheck(L, mark >= 0 && mark <= U32_MAX, 2,
			      "a mark has 32 bits");
		if (!ct)
			return luaL_error(L, "the packet has no connection to mark: it is not tracked");
#ifdef CONFIG_NF_CONNTRACK_MARK
		WRITE_ONCE(ct->mark, mark);
#endif
	}
	if (!ct) {
		lua_pushnil(L);
		return 1;
	}
#ifdef CONFIG_NF_CONNTRACK_MARK
	lua_pushinteger(L, READ_ONCE(ct->mark));
#endif
	return 1;
}

/* Reject */

/**
 * struct answerers - functions of the kernel's reject modules, NULL if not there
 * @reset4: send a TCP reset
 * @unreach4: send an ICMP error
 * @reset6: the same for IPv6
 * @unreach6: the same for IPv6
 */
static struct answerers {
	typeof(&nf_send_reset) reset4;
	typeof(&nf_send_unreach) unreach4;
	typeof(&nf_send_reset6) reset6;
	typeof(&nf_send_unreach6) unreach6;
} answerers;

static DEFINE_MUTEX(answerers_lock);

/* Whose answer is on its way on this CPU. */
static DEFINE_PER_CPU(const void *, answering);

enum answer {
	ANSWER_NONE,
	ANSWER_RESET,
	ANSWER_NO_ROUTE,
	ANSWER_HOST,
	ANSWER_PORT,
	ANSWER_PROHIBITED,
};

static const u8 codes4[] = {
	[ANSWER_NO_ROUTE] = ICMP_NET_UNREACH,
	[ANSWER_HOST] = ICMP_HOST_UNREACH,
	[ANSWER_PORT] = ICMP_PORT_UNREACH,
	[ANSWER_PROHIBITED] = ICMP_PKT_FILTERED,
};

static const u8 codes6[] = {
	[ANSWER_NO_ROUTE] = ICMPV6_NOROUTE,
	[ANSWER_HOST] = ICMPV6_ADDR_UNREACH,
	[ANSWER_PORT] = ICMPV6_PORT_UNREACH,
	[ANSWER_PROHIBITED] = ICMPV6_ADM_PROHIBITED,
};

/*
 * A program of user space looks for a missing module: that is run once for each. One
 * that somebody loads later is found all the same.
 */
#define FIND_ANSWERER(member, function, asked) do {			\
	if (!answerers.member)						\
		WRITE_ONCE(answerers.member, (asked) ?			\
			   symbol_get(function) : symbol_request(function)); \
} while (0)

/**
 * lunatik_reject_load() - look up what answers packets, and load its modules
 *
 * Where there is none, skb:reject() says so.
 *
 * Context: process, may sleep.
 */
void lunatik_reject_load(void)
{
	static bool asked;

	mutex_lock(&answerers_lock);
	FIND_ANSWERER(reset4, nf_send_reset, asked);
	FIND_ANSWERER(unreach4, nf_send_unreach, asked);
	FIND_ANSWERER(reset6, nf_send_reset6, asked);
	FIND_ANSWERER(unreach6, nf_send_unreach6, asked);
	asked = true;
	mutex_unlock(&answerers_lock);
}

/**
 * lunatik_reject_exit() - let go of the modules that lunatik_reject_load() got
 *
 * Context: process; no hook is in force any more.
 */
void lunatik_reject_exit(void)
{
	if (answerers.reset4)
		symbol_put(nf_send_reset);
	if (answerers.unreach4)
		symbol_put(nf_send_unreach);
	if (answerers.reset6)
		symbol_put(nf_send_reset6);
	if (answerers.unreach6)
		symbol_put(nf_send_unreach6);
}

/* What keeps the packet from being answered in this way, or NULL. */
static const char *reject_obstacle(const struct lunatik_packet *packet,
				   enum answer answer)
{
	const struct nf_hook_state *state = packet->state;
	bool ipv4 = state->pf == NFPROTO_IPV4;

	if ((!ipv4 && state->pf != NFPROTO_IPV6) ||
	    state->hook == NF_INET_POST_ROUTING)
		return "packets are rejected at the hooks PRE_ROUTING, LOCAL_IN, FORWARD and LOCAL_OUT of IPv4 and IPv6 only";
	if (answer == ANSWER_RESET && packet->protocol != IPPROTO_TCP)
		return "only TCP has resets, and the packet is of another protocol";
	if (ipv4 ? !READ_ONCE(answerers.reset4) || !READ_ONCE(answerers.unreach4) :
	    !READ_ONCE(answerers.reset6) || !READ_ONCE(answerers.unreach6))
		return ipv4 ? "this kernel cannot reject IPv4 packets: its module nf_reject_ipv4 is missing" :
			"this kernel cannot reject IPv6 packets: its module nf_reject_ipv6 is missing";
	return NULL;
}

/*
 * skb:reject([how]): have the packet dropped and answered when the callback has
 * returned; by a reset where it is TCP, else by "port-unreachable", if not told.
 * Returns the verdict to drop.
 */
int lunatik_skb_reject(lua_State *L)
{
	static const char * const names[] = {
		"tcp-reset", "no-route", "host-unreachable", "port-unreachable",
		"admin-prohibited", NULL
	};
	struct lunatik_packet *packet = lunatik_packet_parsed(L);
	enum answer answer = packet->protocol == IPPROTO_TCP ? ANSWER_RESET :
		ANSWER_PORT;
	const char *obstacle;

	if (!lua_isnoneornil(L, 2))
		answer = ANSWER_RESET + luaL_checkoption(L, 2, NULL, names);
	obstacle = reject_obstacle(packet, answer);
	if (obstacle)
		return luaL_error(L, "%s", obstacle);
	packet->reject = answer;
	lua_pushinteger(L, NF_DROP);
	return 1;
}

static void answer_ipv4(struct sk_buff *skb, const struct nf_hook_state *state,
			u8 answer)
{
	if (answer == ANSWER_RESET)
		answerers.reset4(state->net, state->sk, skb, state->hook);
	else
		answerers.unreach4(skb, codes4[answer], state->hook);
}

static void answer_ipv6(struct sk_buff *skb, const struct nf_hook_state *state,
			u8 answer)
{
	if (answer == ANSWER_RESET)
		answerers.reset6(state->net, state->sk, skb, state->hook);
	else
		answerers.unreach6(state->net, skb, codes6[answer], state->hook);
}

/**
 * lunatik_reject_send() - send what skb:reject() has asked for
 * @skb: packet, which is then dropped
 * @state: of the hook
 * @answer: from struct lunatik_packet
 * @runtime: whose callback has asked
 *
 * The answer passes hooks on this CPU before this returns. So no lock of a runtime
 * is held here, or two runtimes that reject on two CPUs could wait for each other.
 * Those of the same runtime accept it unseen, and an answer to an answer is not
 * sent, which bounds the stack.
 *
 * Context: bottom halves off.
 */
void lunatik_reject_send(struct sk_buff *skb, const struct nf_hook_state *state,
			 u8 answer, const void *runtime)
{
	if (this_cpu_read(answering))
		return;
	this_cpu_write(answering, runtime);
	if (state->pf == NFPROTO_IPV4)
		answer_ipv4(skb, state, answer);
	else
		answer_ipv6(skb, state, answer);
	this_cpu_write(answering, NULL);
}

/**
 * lunatik_reject_is_own() - whether a packet at a hook is a runtime's own answer
 * @runtime: of the hook
 *
 * Context: bottom halves off.
 * Return: that it is on its way on this CPU.
 */
bool lunatik_reject_is_own(const void *runtime)
{
	return this_cpu_read(answering) == runtime;
}
