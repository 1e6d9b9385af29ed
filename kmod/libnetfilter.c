// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The Lua library "netfilter": register, and the numbers that go with it.
 */
#include <linux/netfilter.h>
#include <linux/netfilter_arp.h>
#include <linux/netfilter_bridge.h>
#include <linux/netfilter_ipv4.h>
#include <linux/string.h>

#include "hook.h"
#include "library.h"
#include "runtime.h"

#define HANDLE	"lunatik.hook"

static const struct lunatik_constant families[] = {
	{ "UNSPEC", NFPROTO_UNSPEC },
	{ "INET", NFPROTO_INET },
	{ "IPV4", NFPROTO_IPV4 },
	{ "ARP", NFPROTO_ARP },
	{ "NETDEV", NFPROTO_NETDEV },
	{ "BRIDGE", NFPROTO_BRIDGE },
	{ "IPV6", NFPROTO_IPV6 },
};

static const struct lunatik_constant actions[] = {
	{ "DROP", NF_DROP },
	{ "ACCEPT", NF_ACCEPT },
	{ "STOLEN", NF_STOLEN }, /* this one and those after QUEUE are refused */
	{ "QUEUE", NF_QUEUE },
	{ "REPEAT", NF_REPEAT },
	{ "STOP", NF_STOP },
};

static const struct lunatik_constant inet_hooks[] = {
	{ "PRE_ROUTING", NF_INET_PRE_ROUTING },
	{ "LOCAL_IN", NF_INET_LOCAL_IN },
	{ "FORWARD", NF_INET_FORWARD },
	{ "LOCAL_OUT", NF_INET_LOCAL_OUT },
	{ "POST_ROUTING", NF_INET_POST_ROUTING },
	{ "INGRESS", NF_INET_INGRESS },
};

static const struct lunatik_constant bridge_hooks[] = {
	{ "PRE_ROUTING", NF_BR_PRE_ROUTING },
	{ "LOCAL_IN", NF_BR_LOCAL_IN },
	{ "FORWARD", NF_BR_FORWARD },
	{ "LOCAL_OUT", NF_BR_LOCAL_OUT },
	{ "POST_ROUTING", NF_BR_POST_ROUTING },
};

static const struct lunatik_constant arp_hooks[] = {
	{ "IN", NF_ARP_IN },
	{ "OUT", NF_ARP_OUT },
	{ "FORWARD", NF_ARP_FORWARD },
};

static const struct lunatik_constant netdev_hooks[] = {
	{ "INGRESS", NF_NETDEV_INGRESS },
	{ "EGRESS", NF_NETDEV_EGRESS },
};

static const struct lunatik_constant tcp_flags[] = {
	{ "FIN", 0x01 },
	{ "SYN", 0x02 },
	{ "RST", 0x04 },
	{ "PSH", 0x08 },
	{ "ACK", 0x10 },
	{ "URG", 0x20 },
	{ "ECE", 0x40 },
	{ "CWR", 0x80 },
};

static const struct lunatik_constant ip_priorities[] = {
	{ "FIRST", NF_IP_PRI_FIRST },
	{ "RAW_BEFORE_DEFRAG", NF_IP_PRI_RAW_BEFORE_DEFRAG },
	{ "CONNTRACK_DEFRAG", NF_IP_PRI_CONNTRACK_DEFRAG },
	{ "RAW", NF_IP_PRI_RAW },
	{ "SELINUX_FIRST", NF_IP_PRI_SELINUX_FIRST },
	{ "CONNTRACK", NF_IP_PRI_CONNTRACK },
	{ "MANGLE", NF_IP_PRI_MANGLE },
	{ "NAT_DST", NF_IP_PRI_NAT_DST },
	{ "FILTER", NF_IP_PRI_FILTER },
	{ "SECURITY", NF_IP_PRI_SECURITY },
	{ "NAT_SRC", NF_IP_PRI_NAT_SRC },
	{ "SELINUX_LAST", NF_IP_PRI_SELINUX_LAST },
	{ "CONNTRACK_HELPER", NF_IP_PRI_CONNTRACK_HELPER },
	{ "CONNTRACK_CONFIRM", NF_IP_PRI_CONNTRACK_CONFIRM },
	{ "LAST", NF_IP_PRI_LAST },
};

static const struct lunatik_constant bridge_priorities[] = {
	{ "FIRST", NF_BR_PRI_FIRST },
	{ "NAT_DST_BRIDGED", NF_BR_PRI_NAT_DST_BRIDGED },
	{ "FILTER_BRIDGED", NF_BR_PRI_FILTER_BRIDGED },
	{ "BRNF", NF_BR_PRI_BRNF },
	{ "NAT_DST_OTHER", NF_BR_PRI_NAT_DST_OTHER },
	{ "FILTER_OTHER", NF_BR_PRI_FILTER_OTHER },
	{ "NAT_SRC", NF_BR_PRI_NAT_SRC },
	{ "LAST", NF_BR_PRI_LAST },
};

/* A field of the table in argument 1 as an integer within limits; raises. */
static lua_Integer field_integer(lua_State *L, const char *name, lua_Integer low,
				 lua_Integer high)
{
	lua_Integer value;

	if (lua_getfield(L, 1, name) == LUA_TNIL)
		luaL_error(L, "netfilter.register: the field '%s' is missing",
			   name);
	if (!lua_isinteger(L, -1))
		luaL_error(L, "netfilter.register: the field '%s' is a %s, not an integer",
			   name, luaL_typename(L, -1));
	value = lua_tointeger(L, -1);
	if (value < low || value > high)
		luaL_error(L, "netfilter.register: the field '%s' is %I, outside %I to %I",
			   name, value, low, high);
	lua_pop(L, 1);
	return value;
}

/* Misspelt fields would be ignored silently otherwise. */
static void check_field_names(lua_State *L)
{
	static const char * const known[] = {
		"hook", "pf", "hooknum", "priority", "mark", "onerror", "device"
	};
	size_t i;

	for (lua_pushnil(L); lua_next(L, 1); lua_pop(L, 1)) {
		const char *name = lua_type(L, -2) == LUA_TSTRING ?
			lua_tostring(L, -2) : "?";

		for (i = 0; i < ARRAY_SIZE(known); i++)
			if (!strcmp(known[i], name))
				break;
		if (i == ARRAY_SIZE(known))
			luaL_error(L, "netfilter.register: unknown field '%s'",
				   name);
	}
}

static void read_family(lua_State *L, struct lunatik_place *place)
{
	lua_Integer last;

	place->pf = field_integer(L, "pf", 0, NFPROTO_NUMPROTO - 1);
	switch (place->pf) {
	case NFPROTO_INET:
		last = NF_INET_INGRESS;
		break;
	case NFPROTO_IPV4:
	case NFPROTO_IPV6:
		last = NF_INET_POST_ROUTING;
		break;
	case NFPROTO_ARP:
		last = NF_ARP_FORWARD;
		break;
	case NFPROTO_BRIDGE:
		last = NF_BR_POST_ROUTING;
		break;
	case NFPROTO_NETDEV:
		last = NF_NETDEV_EGRESS;
		break;
	default:
		luaL_error(L, "netfilter.register: no hooks for the family %d: INET, IPV4, IPV6, ARP, BRIDGE and NETDEV have some",
			   (int)place->pf);
		return;
	}
	place->hooknum = field_integer(L, "hooknum", 0, last);
}

static bool is_at_device(const struct lunatik_place *place)
{
	return place->pf == NFPROTO_NETDEV ||
		(place->pf == NFPROTO_INET && place->hooknum == NF_INET_INGRESS);
}

/* The interface that the value on the top names, in the runtime's namespace. */
static int find_device(lua_State *L)
{
	struct net *net = lunatik_runtime_of(L)->net;
	int index = 0;

	if (lua_isinteger(L, -1))
		index = lunatik_ifindex_of(net, NULL, lua_tointeger(L, -1));
	else if (lua_type(L, -1) == LUA_TSTRING)
		index = lunatik_ifindex_of(net, lua_tostring(L, -1), 0);
	else
		luaL_error(L, "netfilter.register: the field 'device' is a %s, not a name or an index",
			   luaL_typename(L, -1));
	if (!index)
		luaL_error(L, "netfilter.register: no interface '%s' in the runtime's network namespace",
			   lua_tostring(L, -1));
	return index;
}

static void read_device(lua_State *L, struct lunatik_place *place)
{
	bool given = lua_getfield(L, 1, "device") != LUA_TNIL;

	if (given != is_at_device(place))
		luaL_error(L, given ?
			   "netfilter.register: the field 'device' is for NETDEV and for INET's INGRESS only" :
			   "netfilter.register: the field 'device' is missing: hooks of NETDEV and INET's INGRESS are at an interface");
	if (given)
		place->ifindex = find_device(L);
	lua_pop(L, 1);
}

static void read_error_rule(lua_State *L, struct lunatik_hook *hook)
{
	const char *rule;

	lua_getfield(L, 1, "onerror");
	rule = luaL_optstring(L, -1, "accept");
	if (strcmp(rule, "accept") && strcmp(rule, "drop"))
		luaL_error(L, "netfilter.register: the field 'onerror' is \"accept\" or \"drop\", not \"%s\"",
			   rule);
	hook->on_error = *rule == 'd' ? NF_DROP : NF_ACCEPT;
	lua_pop(L, 1);
}

/*
 * netfilter.register{ hook =, pf =, hooknum =, priority = [, mark =]
 *                     [, onerror =] [, device =] }: a handle
 */
static int netfilter_register(lua_State *L)
{
	struct lunatik_instance *instance = lunatik_instance_of(L);
	struct lunatik_hook hook = {};
	struct lunatik_hook **handle;

	luaL_checktype(L, 1, LUA_TTABLE);
	lua_settop(L, 1);
	if (instance->sleep)
		return luaL_error(L, "netfilter.register: hooks run in atomic context, and this runtime is sleepable; create it with sleep=false");
	if (instance->armed)
		return luaL_error(L, "netfilter.register: hooks are registered while the script's body first runs");
	check_field_names(L);
	read_family(L, &hook.place);
	read_device(L, &hook.place);
	hook.place.priority = field_integer(L, "priority", S32_MIN, S32_MAX);
	hook.place.match_mark = lua_getfield(L, 1, "mark") != LUA_TNIL;
	lua_pop(L, 1);
	if (hook.place.match_mark)
		hook.place.mark = field_integer(L, "mark", 0, U32_MAX);
	read_error_rule(L, &hook);
	lunatik_check_stack(L);
	lunatik_reject_load();
	if (lua_getfield(L, 1, "hook") != LUA_TFUNCTION)
		return luaL_error(L, "netfilter.register: the field 'hook' is a %s, not a function",
				  luaL_typename(L, -1));
	hook.callback = luaL_ref(L, LUA_REGISTRYINDEX);
	hook.packet = lunatik_skb_new(L);
	hook.packet_ref = luaL_ref(L, LUA_REGISTRYINDEX);
	handle = lua_newuserdatauv(L, sizeof(*handle), 0);
	*handle = lunatik_hook_add(instance, &hook);
	if (!*handle)
		return luaL_error(L, "not enough memory");
	luaL_setmetatable(L, HANDLE);
	return 1;
}

/* handle:unregister(): call the hook's callback no more; twice is harmless */
static int handle_unregister(lua_State *L)
{
	struct lunatik_hook **handle = luaL_checkudata(L, 1, HANDLE);

	lunatik_hook_unregister(*handle); /* it lives as long as the Lua state */
	return 0;
}

static const luaL_Reg handle_methods[] = {
	{ "unregister", handle_unregister },
	{ NULL, NULL }
};

static void open_handle(lua_State *L)
{
	luaL_newmetatable(L, HANDLE);
	luaL_newlib(L, handle_methods);
	lua_setfield(L, -2, "__index");
	lua_pushliteral(L, HANDLE);
	lua_setfield(L, -2, "__metatable");
	lua_pop(L, 1);
}

/* netfilter.queue(number [, bypass]): the verdict to queue to user space */
static int netfilter_queue(lua_State *L)
{
	lua_Integer number = luaL_checkinteger(L, 1);

	luaL_argcheck(L, number >= 0 && number <= U16_MAX, 1,
		      "a queue's number is 0 to 65535");
	lua_pushinteger(L, NF_QUEUE_NR(number) |
			(lua_toboolean(L, 2) ? NF_VERDICT_FLAG_QUEUE_BYPASS : 0));
	return 1;
}

static const luaL_Reg netfilter_functions[] = {
	{ "queue", netfilter_queue },
	{ "register", netfilter_register },
	{ NULL, NULL }
};

#define CONSTANTS(L, field, array) \
	lunatik_constants(L, field, array, ARRAY_SIZE(array))

int lunatik_open_netfilter(lua_State *L)
{
	open_handle(L);
	luaL_newlib(L, netfilter_functions);
	CONSTANTS(L, "family", families);
	CONSTANTS(L, "action", actions);
	CONSTANTS(L, "inet_hooks", inet_hooks);
	CONSTANTS(L, "bridge_hooks", bridge_hooks);
	CONSTANTS(L, "arp_hooks", arp_hooks);
	CONSTANTS(L, "netdev_hooks", netdev_hooks);
	CONSTANTS(L, "ip_priority", ip_priorities);
	CONSTANTS(L, "bridge_priority", bridge_priorities);
	CONSTANTS(L, "tcp_flags", tcp_flags);
	return 1;
}

/* The same constants under shorter names. */
int lunatik_open_nf(lua_State *L)
{
	lua_newtable(L);
	CONSTANTS(L, "proto", families);
	CONSTANTS(L, "action", actions);
	CONSTANTS(L, "inet", inet_hooks);
	CONSTANTS(L, "netdev", netdev_hooks);
	CONSTANTS(L, "arp", arp_hooks);
	lua_newtable(L);
	CONSTANTS(L, "pri", ip_priorities);
	lua_setfield(L, -2, "ip");
	CONSTANTS(L, "br", bridge_hooks);
	lua_getfield(L, -1, "br");
	CONSTANTS(L, "pri", bridge_priorities);
	lua_pop(L, 1);
	return 1;
}
