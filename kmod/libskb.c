// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The packet object of callbacks: what is read from a packet. See skb.h. Nothing
 * outside the packet is read.
 */
#include <linux/if_vlan.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/netdevice.h>
#include <linux/sctp.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <net/ip.h>
#include <net/ipv6.h>

#include "library.h"
#include "skb.h"

/**
 * struct packet_object - a packet object's memory
 * @packet: what hooks fill in for each packet
 * @tag: &packet_tag, which tells it from other objects without a look at the
 *	registry
 */
struct packet_object {
	struct lunatik_packet packet;
	const void *tag;
};

static const char packet_tag;

/**
 * lunatik_packet_check() - the packet that argument 1 stands for
 * @L: thread; an error is raised unless it runs in the packet's callback
 *
 * Return: the packet.
 */
struct lunatik_packet *lunatik_packet_check(lua_State *L)
{
	struct packet_object *object = lua_touserdata(L, 1);

	if (!object || lua_rawlen(L, 1) != sizeof(*object) ||
	    object->tag != &packet_tag)
		luaL_checkudata(L, 1, LUNATIK_PACKET); /* words the error */
	return lunatik_packet_valid(L, object);
}

/**
 * lunatik_packet_valid() - the packet that a packet object stands for
 * @L: thread; an error is raised unless it runs in the packet's callback
 * @self: the object's memory
 *
 * Return: the packet.
 */
struct lunatik_packet *lunatik_packet_valid(lua_State *L, void *self)
{
	struct packet_object *object = self;

	if (unlikely(!object->packet.skb))
		luaL_error(L, "the packet is gone: it is valid only inside the callback it was passed to");
	return &object->packet;
}

/* What is in the packet */

static void parse_ipv4(struct lunatik_packet *packet)
{
	const struct sk_buff *skb = packet->skb;
	int size = lunatik_packet_len(skb), len, total;
	const struct iphdr *ip;
	struct iphdr buf;

	ip = skb_header_pointer(skb, skb_network_offset(skb), sizeof(buf), &buf);
	if (!ip || ip->version != 4)
		return;
	len = ip->ihl * 4;
	total = ntohs(ip->tot_len) ?: size; /* 0: more than 16 bits hold */
	if (len < (int)sizeof(*ip) || total < len || size < len)
		return;
	packet->family = NFPROTO_IPV4;
	packet->protocol = ip->protocol;
	packet->fragment = ip_is_fragment(ip);
	packet->end = min(size, total);
	if (!(ip->frag_off & htons(IP_OFFSET)))
		packet->transport = len;
}

/* The header of a later fragment is the last that it holds. */
static void parse_ipv6_fragment(struct lunatik_packet *packet, int offset)
{
	const u8 *next;
	u8 buf;

	next = skb_header_pointer(packet->skb, offset, sizeof(buf), &buf);
	if (next)
		packet->protocol = *next;
}

static void parse_ipv6(struct lunatik_packet *packet)
{
	const struct sk_buff *skb = packet->skb;
	int net = skb_network_offset(skb), size = lunatik_packet_len(skb);
	int start = net + sizeof(struct ipv6hdr), len;
	const struct ipv6hdr *ip;
	struct ipv6hdr buf;
	__be16 fragment = 0;
	u8 protocol;

	ip = skb_header_pointer(skb, net, sizeof(buf), &buf);
	if (!ip || ip->version != 6)
		return;
	len = ntohs(ip->payload_len); /* 0: more than 16 bits hold */
	protocol = ip->nexthdr;
	packet->family = NFPROTO_IPV6;
	packet->end = len ? min(size, len + (int)sizeof(*ip)) : size;
	start = ipv6_skip_exthdr(skb, start, &protocol, &fragment);
	packet->fragment = fragment != 0;
	if (start < 0)
		return;
	if (fragment & htons(IP6_OFFSET)) {
		parse_ipv6_fragment(packet, start);
		return;
	}
	packet->protocol = protocol;
	if (start - net <= packet->end)
		packet->transport = start - net;
}

static u8 packet_family(const struct lunatik_packet *packet)
{
	u8 pf = packet->state->pf;

	if (pf == NFPROTO_IPV4 || pf == NFPROTO_IPV6 || pf == NFPROTO_ARP)
		return pf;
	switch (packet->skb->protocol) {
	case htons(ETH_P_IP):
		return NFPROTO_IPV4;
	case htons(ETH_P_IPV6):
		return NFPROTO_IPV6;
	case htons(ETH_P_ARP):
		return NFPROTO_ARP;
	default:
		return 0;
	}
}

/**
 * lunatik_packet_parse() - find out what is in a packet, unless that is known
 * @packet: valid
 */
void lunatik_packet_parse(struct lunatik_packet *packet)
{
	u8 family;

	if (packet->parsed)
		return;
	family = packet_family(packet);
	packet->parsed = true;
	packet->family = 0;
	packet->fragment = false;
	packet->protocol = -1;
	packet->transport = 0;
	packet->end = 0;
	if (family == NFPROTO_IPV4)
		parse_ipv4(packet);
	else if (family == NFPROTO_IPV6)
		parse_ipv6(packet);
	else
		packet->family = family;
}

/**
 * lunatik_packet_parsed() - lunatik_packet_check(), and what is in the packet
 * @L: thread; may raise
 *
 * Return: the packet.
 */
struct lunatik_packet *lunatik_packet_parsed(lua_State *L)
{
	struct lunatik_packet *packet = lunatik_packet_check(L);

	lunatik_packet_parse(packet);
	return packet;
}

/**
 * lunatik_packet_field() - a field of the transport header
 * @packet: parsed
 * @offset: from the transport header
 * @buf: room for the field
 * @len: its size
 *
 * Return: the field, not aligned and valid until the packet is changed, or NULL
 * where the packet holds none.
 */
const void *lunatik_packet_field(const struct lunatik_packet *packet, int offset,
				 void *buf, int len)
{
	const struct sk_buff *skb = packet->skb;

	offset += packet->transport;
	if (!packet->transport || offset + len > packet->end)
		return NULL;
	return skb_header_pointer(skb, skb_network_offset(skb) + offset, len, buf);
}

/* The data offset in the upper four bits of a byte, in words; 0 if too small. */
static int words_len(const struct lunatik_packet *packet, int offset, int least)
{
	u8 buf;
	const u8 *words = lunatik_packet_field(packet, offset, &buf, 1);
	int len = words ? (*words >> 4) * 4 : 0;

	return len >= least ? len : 0;
}

static int transport_len(const struct lunatik_packet *packet)
{
	switch (packet->protocol) {
	case IPPROTO_TCP:
		return words_len(packet, 12, sizeof(struct tcphdr));
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return sizeof(struct udphdr);
	case IPPROTO_SCTP:
		return sizeof(struct sctphdr);
	default:
		return 0;
	}
}

/**
 * lunatik_packet_payload() - where the payload of the transport protocol starts
 * @packet: parsed
 *
 * Return: its offset, which may be that of the packet's end, or 0 where there is
 * none, or of a protocol that is not known here.
 */
int lunatik_packet_payload(const struct lunatik_packet *packet)
{
	int len = packet->transport ? transport_len(packet) : 0;

	if (!len || packet->transport + len > packet->end)
		return 0;
	return packet->transport + len;
}

/* Methods: bytes */

/* Copy len bytes at the offset in argument 2; raises. */
static void packet_field(lua_State *L, void *buf, int len)
{
	struct sk_buff *skb = lunatik_packet_check(L)->skb;
	lua_Integer offset = luaL_checkinteger(L, 2);
	int size = lunatik_packet_len(skb);
	const void *field = NULL;

	if (offset >= 0 && offset <= (lua_Integer)size - len)
		field = skb_header_pointer(skb, skb_network_offset(skb) + offset,
					   len, buf);
	if (!field)
		luaL_error(L, "offset %I with %d bytes is outside the packet of %d bytes",
			   offset, len, size);
	memcpy(buf, field, len); /* fields are not aligned */
}

/* skb:u8(offset), skb:u16(offset), skb:u32(offset) */
static int skb_u8(lua_State *L)
{
	u8 field;

	packet_field(L, &field, sizeof(field));
	lua_pushinteger(L, field);
	return 1;
}

static int skb_u16(lua_State *L)
{
	__be16 field;

	packet_field(L, &field, sizeof(field));
	lua_pushinteger(L, be16_to_cpu(field));
	return 1;
}

static int skb_u32(lua_State *L)
{
	__be32 field;

	packet_field(L, &field, sizeof(field));
	lua_pushinteger(L, be32_to_cpu(field));
	return 1;
}

/* Push the bytes that arguments 2 and 3 choose of so many from an offset on. */
static int push_string(lua_State *L, const struct sk_buff *skb, int start,
		       lua_Integer size)
{
	lua_Integer offset = luaL_optinteger(L, 2, 0);
	lua_Integer len = luaL_optinteger(L, 3, size - offset);
	luaL_Buffer b;
	char *room;

	if (offset < 0 || len < 0 || offset > size || len > size - offset)
		return luaL_error(L, "offset %I with %I bytes is outside the packet of %I bytes",
				  offset, len, size);
	room = luaL_buffinitsize(L, &b, len);
	if (skb_copy_bits(skb, skb_network_offset(skb) + start + offset, room,
			  len))
		return luaL_error(L, "the packet cannot be read");
	luaL_pushresultsize(&b, len);
	return 1;
}

/* skb:string([offset [, len]]): len bytes, by default all that follow */
static int skb_string(lua_State *L)
{
	struct sk_buff *skb = lunatik_packet_check(L)->skb;

	return push_string(L, skb, 0, lunatik_packet_len(skb));
}

/* skb:payload([offset [, len]]): bytes after the transport header, or nil */
static int skb_payload(lua_State *L)
{
	struct lunatik_packet *packet = lunatik_packet_parsed(L);
	int start = lunatik_packet_payload(packet);

	if (start)
		return push_string(L, packet->skb, start, packet->end - start);
	lua_pushnil(L);
	return 1;
}

/* #skb: bytes from the network header to the end */
static int skb_length(lua_State *L)
{
	lua_pushinteger(L, lunatik_packet_len(lunatik_packet_check(L)->skb));
	return 1;
}

/* Methods: what goes with the packet */

/* skb:mark(), skb:mark(value) */
static int skb_mark(lua_State *L)
{
	struct sk_buff *skb = lunatik_packet_check(L)->skb;
	lua_Integer mark;

	if (lua_gettop(L) > 1) {
		mark = luaL_checkinteger(L, 2);
		luaL_argcheck(L, mark >= 0 && mark <= U32_MAX, 2,
			      "a mark has 32 bits");
		skb->mark = mark;
	}
	lua_pushinteger(L, skb->mark);
	return 1;
}

static int push_device(lua_State *L, const struct net_device *dev)
{
	if (dev)
		lua_pushinteger(L, dev->ifindex);
	else
		lua_pushnil(L);
	return 1;
}

/* skb:indev(), skb:outdev(): index of the interface, or nil */
static int skb_indev(lua_State *L)
{
	return push_device(L, lunatik_packet_check(L)->state->in);
}

static int skb_outdev(lua_State *L)
{
	return push_device(L, lunatik_packet_check(L)->state->out);
}

/* skb:ifindex(): index of the interface that the packet is at, or nil */
static int skb_ifindex(lua_State *L)
{
	struct lunatik_packet *packet = lunatik_packet_check(L);
	const struct nf_hook_state *state = packet->state;

	return push_device(L, packet->skb->dev ?: state->out ?: state->in);
}

/* skb:hook(): number of the hook, and family, that the packet is at */
static int skb_hook(lua_State *L)
{
	const struct nf_hook_state *state = lunatik_packet_check(L)->state;

	lua_pushinteger(L, state->hook);
	lua_pushinteger(L, state->pf);
	return 2;
}

/* skb:vlan(): number of the VLAN and priority in the packet's tag, or nil */
static int skb_vlan(lua_State *L)
{
	const struct sk_buff *skb = lunatik_packet_check(L)->skb;

	if (!skb_vlan_tag_present(skb)) {
		lua_pushnil(L);
		return 1;
	}
	lua_pushinteger(L, skb_vlan_tag_get_id(skb));
	lua_pushinteger(L, skb_vlan_tag_get_prio(skb));
	return 2;
}

/* skb:ethertype(): type of the frame, after an outer VLAN tag */
static int skb_ethertype(lua_State *L)
{
	lua_pushinteger(L, ntohs(lunatik_packet_check(L)->skb->protocol));
	return 1;
}

/* Methods: headers */

/* skb:family(): netfilter.family.IPV4, IPV6 or ARP, or nil */
static int skb_family(lua_State *L)
{
	u8 family = lunatik_packet_parsed(L)->family;

	if (family)
		lua_pushinteger(L, family);
	else
		lua_pushnil(L);
	return 1;
}

/* skb:protocol(): number of the transport protocol, or nil */
static int skb_protocol_number(lua_State *L)
{
	int protocol = lunatik_packet_parsed(L)->protocol;

	if (protocol >= 0)
		lua_pushinteger(L, protocol);
	else
		lua_pushnil(L);
	return 1;
}

/* skb:tcpflags(): FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32, ECE 64, CWR 128 */
static int skb_tcpflags(lua_State *L)
{
	struct lunatik_packet *packet = lunatik_packet_parsed(L);
	const u8 *flags = NULL;
	u8 buf;

	if (packet->protocol == IPPROTO_TCP)
		flags = lunatik_packet_field(packet, 13, &buf, sizeof(buf));
	if (flags)
		lua_pushinteger(L, *flags);
	else
		lua_pushnil(L);
	return 1;
}

/* skb:icmp(): type and code of an ICMP or ICMPv6 message, or nil */
static int skb_icmp(lua_State *L)
{
	struct lunatik_packet *packet = lunatik_packet_parsed(L);
	int icmp = packet->family == NFPROTO_IPV4 ? IPPROTO_ICMP :
		IPPROTO_ICMPV6;
	const u8 *field = NULL;
	u8 buf[2];

	if (packet->protocol == icmp)
		field = lunatik_packet_field(packet, 0, buf, sizeof(buf));
	if (!field) {
		lua_pushnil(L);
		return 1;
	}
	lua_pushinteger(L, field[0]);
	lua_pushinteger(L, field[1]);
	return 2;
}

static const luaL_Reg packet_methods[] = {
	{ "checksum", lunatik_skb_checksum },
	{ "connmark", lunatik_skb_connmark },
	{ "copy", lunatik_skb_copy },
	{ "ctstate", lunatik_skb_ctstate },
	{ "daddr", lunatik_skb_daddr },
	{ "data", lunatik_skb_data },
	{ "dport", lunatik_skb_dport },
	{ "dscp", lunatik_skb_dscp },
	{ "ethertype", skb_ethertype },
	{ "family", skb_family },
	{ "hook", skb_hook },
	{ "icmp", skb_icmp },
	{ "ifindex", skb_ifindex },
	{ "indev", skb_indev },
	{ "mark", skb_mark },
	{ "outdev", skb_outdev },
	{ "payload", skb_payload },
	{ "protocol", skb_protocol_number },
	{ "reject", lunatik_skb_reject },
	{ "resize", lunatik_skb_resize },
	{ "saddr", lunatik_skb_saddr },
	{ "sport", lunatik_skb_sport },
	{ "string", skb_string },
	{ "tcpflags", skb_tcpflags },
	{ "ttl", lunatik_skb_ttl },
	{ "u8", skb_u8 },
	{ "u16", skb_u16 },
	{ "u32", skb_u32 },
	{ "vlan", skb_vlan },
	{ NULL, NULL }
};

/**
 * lunatik_skb_new() - push a packet object that stands for no packet yet
 * @L: thread
 *
 * Context: inside a protected call.
 * Return: what a hook fills in; lives as long as the object.
 */
struct lunatik_packet *lunatik_skb_new(lua_State *L)
{
	struct packet_object *object;

	object = lua_newuserdatauv(L, sizeof(*object), LUNATIK_VIEWS);
	*object = (struct packet_object){ .tag = &packet_tag };
	luaL_setmetatable(L, LUNATIK_PACKET);
	return &object->packet;
}

/**
 * lunatik_skb_open() - make the packet objects' metatable
 * @L: main thread of a new state, before any script runs
 *
 * Context: inside a protected call.
 */
void lunatik_skb_open(lua_State *L)
{
	luaL_newmetatable(L, LUNATIK_PACKET);
	lua_newtable(L);
	lua_setfield(L, -2, "__index");
	lunatik_view_open(L);
	lua_pushcfunction(L, skb_length);
	lua_setfield(L, -2, "__len");
	lua_getfield(L, -1, "__index");
	luaL_setfuncs(L, packet_methods, 0); /* "checksum" means another one here */
	lua_pop(L, 1);
	lua_pushliteral(L, LUNATIK_PACKET);
	lua_setfield(L, -2, "__metatable");
	lua_pop(L, 1);
}
