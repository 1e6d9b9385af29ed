// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The packet object of callbacks: its bytes by the methods of data objects. See skb.h
 * and bytes.h.
 *
 * A view is a part of a packet. Each packet object has at most one of each part, made
 * when it is first asked for and used again for the packets that follow, so that
 * callbacks allocate nothing. It is valid from skb:data() to the end of the callback
 * and raises at other times. The packet object itself is the same from its network
 * header on.
 */
#include <linux/bits.h>
#include <linux/skbuff.h>

#include "bytes.h"
#include "library.h"
#include "skb.h"

#define VIEW	"lunatik.view"

enum part {
	PART_NET,
	PART_MAC,
	PART_TRANSPORT,
	PART_PAYLOAD,
};

static const char * const part_names[] = {
	[PART_NET] = "net",
	[PART_MAC] = "mac",
	[PART_TRANSPORT] = "transport",
	[PART_PAYLOAD] = "payload",
	NULL
};

/**
 * struct view - the memory of a view
 * @packet: the memory of the packet object, which is the userdata's user value
 * @part: of the packet
 */
struct view {
	struct lunatik_packet *packet;
	u8 part;
};

/**
 * struct extent - bytes of a packet; offsets count from the network header
 * @start: offset of the first
 * @end: offset after the last
 */
struct extent {
	int start;
	int end;
};

/* Where a part is in a parsed packet; false where it has none. */
static bool part_find(const struct lunatik_packet *packet, enum part part,
		      struct extent *extent)
{
	const struct sk_buff *skb = packet->skb;

	*extent = (struct extent){ 0, lunatik_packet_len(skb) };
	switch (part) {
	case PART_NET:
		return true;
	case PART_MAC:
		if (!skb_mac_header_was_set(skb))
			return false;
		extent->start = skb_mac_offset(skb) - skb_network_offset(skb);
		return extent->start < 0;
	case PART_TRANSPORT:
		extent->start = packet->transport;
		break;
	case PART_PAYLOAD:
		extent->start = lunatik_packet_payload(packet);
		break;
	}
	extent->end = packet->end;
	return extent->start != 0;
}

/* Bytes of an extent. Inside it the packet's linear part may begin before its data. */

static bool extent_has(struct extent extent, size_t offset, size_t len)
{
	size_t size = extent.end - extent.start;

	return offset <= size && len <= size - offset;
}

static bool extent_read(const struct lunatik_packet *packet, struct extent extent,
		       size_t offset, void *buf, size_t len)
{
	const struct sk_buff *skb = packet->skb;
	int start = skb_network_offset(skb) + extent.start + (int)offset;

	return extent_has(extent, offset, len) &&
		!skb_copy_bits(skb, start, buf, len);
}

static bool extent_write(lua_State *L, struct lunatik_packet *packet,
			struct extent extent, size_t offset, const void *buf,
			size_t len)
{
	if (!extent_has(extent, offset, len))
		return false;
	if (!len)
		return true;
	lunatik_packet_writable(L, packet->skb, extent.start + offset + len);
	memcpy(skb_network_header(packet->skb) + extent.start + offset, buf, len);
	lunatik_packet_changed(packet);
	return true;
}

/* The packet object as bytes */

static struct extent packet_extent(const struct lunatik_packet *packet)
{
	return (struct extent){ 0, lunatik_packet_len(packet->skb) };
}

static size_t packet_size(lua_State *L, void *self)
{
	return packet_extent(lunatik_packet_valid(L, self)).end;
}

static bool packet_read(lua_State *L, void *self, size_t offset, void *buf,
			size_t len)
{
	struct lunatik_packet *packet = lunatik_packet_valid(L, self);

	return extent_read(packet, packet_extent(packet), offset, buf, len);
}

static bool packet_write(lua_State *L, void *self, size_t offset, const void *buf,
			 size_t len)
{
	struct lunatik_packet *packet = lunatik_packet_valid(L, self);

	return extent_write(L, packet, packet_extent(packet), offset, buf, len);
}

static const struct lunatik_bytes_ops packet_ops = {
	.name = "packet",
	.size = packet_size,
	.read = packet_read,
	.write = packet_write,
};

/* Views as bytes */

/* The view's packet, and where the view is in it; raises. */
static struct lunatik_packet *view_find(lua_State *L, const struct view *view,
					struct extent *extent)
{
	struct lunatik_packet *packet = view->packet;

	if (!packet->skb || !(packet->views & BIT(view->part)))
		luaL_error(L, "the view is gone: it is valid only inside the callback that called skb:data() for it");
	lunatik_packet_parse(packet);
	if (!part_find(packet, view->part, extent))
		*extent = (struct extent){}; /* what was written has taken it away */
	return packet;
}

static size_t view_size(lua_State *L, void *self)
{
	struct extent extent;

	view_find(L, self, &extent);
	return extent.end - extent.start;
}

static bool view_read(lua_State *L, void *self, size_t offset, void *buf,
		      size_t len)
{
	struct extent extent;
	struct lunatik_packet *packet = view_find(L, self, &extent);

	return extent_read(packet, extent, offset, buf, len);
}

static bool view_write(lua_State *L, void *self, size_t offset, const void *buf,
		       size_t len)
{
	struct extent extent;
	struct lunatik_packet *packet = view_find(L, self, &extent);

	return extent_write(L, packet, extent, offset, buf, len);
}

static const struct lunatik_bytes_ops view_ops = {
	.name = "view",
	.size = view_size,
	.read = view_read,
	.write = view_write,
};

/* Push a new view, and keep it with the packet object in argument 1. */
static void view_new(lua_State *L, struct lunatik_packet *packet, enum part part)
{
	struct view *view = lua_newuserdatauv(L, sizeof(*view), 1);

	*view = (struct view){ packet, part };
	lua_pushvalue(L, 1);
	lua_setiuservalue(L, -2, 1); /* or the view could outlive it */
	luaL_setmetatable(L, VIEW);
	lua_pushvalue(L, -1);
	lua_setiuservalue(L, 1, part + 1);
}

/* skb:data(["net" | "mac" | "transport" | "payload"]): that part, or nil */
int lunatik_skb_data(lua_State *L)
{
	struct lunatik_packet *packet = lunatik_packet_parsed(L);
	enum part part = luaL_checkoption(L, 2, part_names[PART_NET], part_names);
	struct extent extent;

	if (!part_find(packet, part, &extent)) {
		lua_pushnil(L);
		return 1;
	}
	if (lua_getiuservalue(L, 1, part + 1) == LUA_TNIL)
		view_new(L, packet, part);
	packet->views |= BIT(part);
	return 1;
}

/* skb:copy(): a data object with the bytes from the network header on */
int lunatik_skb_copy(lua_State *L)
{
	const struct sk_buff *skb = lunatik_packet_check(L)->skb;
	int len = lunatik_packet_len(skb);
	void *bytes = lunatik_data_new(L, len);

	if (skb_copy_bits(skb, skb_network_offset(skb), bytes, len))
		return luaL_error(L, "the packet cannot be read");
	return 1;
}

/**
 * lunatik_view_open() - make the metatable of views, and packets a kind of bytes
 * @L: has the metatable of packet objects on its top
 *
 * Context: inside a protected call.
 */
void lunatik_view_open(lua_State *L)
{
	lunatik_bytes_open(L, &packet_ops);
	luaL_newmetatable(L, VIEW);
	lua_newtable(L);
	lua_setfield(L, -2, "__index");
	lunatik_bytes_open(L, &view_ops);
	lua_pushliteral(L, VIEW);
	lua_setfield(L, -2, "__metatable");
	lua_pop(L, 1);
}
