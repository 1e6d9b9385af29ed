// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The packet object of callbacks. Offsets count from the network header, in
 * bytes; fields are in network byte order; nothing outside the packet is read.
 */
#include <linux/netdevice.h>
#include <linux/skbuff.h>

#include "hook.h"
#include "library.h"

#define PACKET	"lunatik.skb"

static struct lunatik_packet *packet_check(lua_State *L)
{
	struct lunatik_packet *packet = luaL_checkudata(L, 1, PACKET);

	if (!packet->skb)
		luaL_error(L, "the packet is gone: it is valid only inside the callback it was passed to");
	return packet;
}

static int packet_len(const struct sk_buff *skb)
{
	return max(0, (int)skb->len - skb_network_offset(skb));
}

/* Copy len bytes at the offset in argument 2; raises. */
static void packet_field(lua_State *L, void *buf, int len)
{
	struct sk_buff *skb = packet_check(L)->skb;
	lua_Integer offset = luaL_checkinteger(L, 2);
	int size = packet_len(skb);
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
static int packet_u8(lua_State *L)
{
	u8 field;

	packet_field(L, &field, sizeof(field));
	lua_pushinteger(L, field);
	return 1;
}

static int packet_u16(lua_State *L)
{
	__be16 field;

	packet_field(L, &field, sizeof(field));
	lua_pushinteger(L, be16_to_cpu(field));
	return 1;
}

static int packet_u32(lua_State *L)
{
	__be32 field;

	packet_field(L, &field, sizeof(field));
	lua_pushinteger(L, be32_to_cpu(field));
	return 1;
}

/* skb:string(offset [, len]): len bytes, by default all that follow */
static int packet_string(lua_State *L)
{
	struct sk_buff *skb = packet_check(L)->skb;
	lua_Integer size = packet_len(skb);
	lua_Integer offset = luaL_checkinteger(L, 2);
	lua_Integer len = luaL_optinteger(L, 3, size - offset);
	luaL_Buffer b;
	char *room;

	if (offset < 0 || len < 0 || offset > size || len > size - offset)
		return luaL_error(L, "offset %I with %I bytes is outside the packet of %I bytes",
				  offset, len, size);
	room = luaL_buffinitsize(L, &b, len);
	if (skb_copy_bits(skb, skb_network_offset(skb) + offset, room, len))
		return luaL_error(L, "the packet cannot be read");
	luaL_pushresultsize(&b, len);
	return 1;
}

/* #skb: bytes from the network header to the end */
static int packet_length(lua_State *L)
{
	lua_pushinteger(L, packet_len(packet_check(L)->skb));
	return 1;
}

/* skb:mark(), skb:mark(value) */
static int packet_mark(lua_State *L)
{
	struct sk_buff *skb = packet_check(L)->skb;
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
static int packet_indev(lua_State *L)
{
	return push_device(L, packet_check(L)->state->in);
}

static int packet_outdev(lua_State *L)
{
	return push_device(L, packet_check(L)->state->out);
}

/* skb:hook(): number of the hook, and family, that the packet is at */
static int packet_hook(lua_State *L)
{
	const struct nf_hook_state *state = packet_check(L)->state;

	lua_pushinteger(L, state->hook);
	lua_pushinteger(L, state->pf);
	return 2;
}

static const luaL_Reg packet_methods[] = {
	{ "hook", packet_hook },
	{ "indev", packet_indev },
	{ "mark", packet_mark },
	{ "outdev", packet_outdev },
	{ "string", packet_string },
	{ "u8", packet_u8 },
	{ "u16", packet_u16 },
	{ "u32", packet_u32 },
	{ NULL, NULL }
};

/**
 * lunatik_skb_new() - push a packet object that stands for no packet yet
 * @L: thread
 *
 * Context: inside a protected call.
 */
void lunatik_skb_new(lua_State *L)
{
	struct lunatik_packet *packet;

	packet = lua_newuserdatauv(L, sizeof(*packet), 0);
	packet->skb = NULL;
	luaL_setmetatable(L, PACKET);
}

/**
 * lunatik_skb_open() - make the packet objects' metatable
 * @L: main thread of a new state, before any script runs
 *
 * Context: inside a protected call.
 */
void lunatik_skb_open(lua_State *L)
{
	luaL_newmetatable(L, PACKET);
	lua_pushcfunction(L, packet_length);
	lua_setfield(L, -2, "__len");
	luaL_newlib(L, packet_methods);
	lua_setfield(L, -2, "__index");
	lua_pushliteral(L, PACKET);
	lua_setfield(L, -2, "__metatable");
	lua_pop(L, 1);
}
