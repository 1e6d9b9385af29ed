/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * The packet object of callbacks, as the files that make up its methods see it:
 * libskb.c what is read, skbview.c bytes, skbedit.c what is changed, skbtrack.c
 * connections.
 *
 * Offsets count from the network header, in bytes. What a packet holds is found
 * out once per callback, by the first method that asks, and again after the packet
 * was changed. No pointer into a packet outlives the call that got it, because any
 * change may move the packet.
 */
#ifndef _LUNATIK_SKB_H
#define _LUNATIK_SKB_H

#include <linux/skbuff.h>

#include "hook.h"

#include "lua.h"
#include "lauxlib.h"

#define LUNATIK_PACKET	"lunatik.skb"
/* Views of a packet object: its user values. */
#define LUNATIK_VIEWS	4

struct lunatik_packet *lunatik_packet_check(lua_State *L);
struct lunatik_packet *lunatik_packet_valid(lua_State *L, void *self);
struct lunatik_packet *lunatik_packet_parsed(lua_State *L);
void lunatik_packet_parse(struct lunatik_packet *packet);
const void *lunatik_packet_field(const struct lunatik_packet *packet, int offset,
				 void *buf, int len);

/* Bytes from the network header to the end. */
static inline int lunatik_packet_len(const struct sk_buff *skb)
{
	return max(0, (int)skb->len - skb_network_offset(skb));
}

int lunatik_packet_payload(const struct lunatik_packet *packet);
void lunatik_packet_writable(lua_State *L, struct sk_buff *skb, int end);
void lunatik_packet_changed(struct lunatik_packet *packet);

int lunatik_skb_saddr(lua_State *L);
int lunatik_skb_daddr(lua_State *L);
int lunatik_skb_sport(lua_State *L);
int lunatik_skb_dport(lua_State *L);
int lunatik_skb_ttl(lua_State *L);
int lunatik_skb_dscp(lua_State *L);
int lunatik_skb_checksum(lua_State *L);
int lunatik_skb_resize(lua_State *L);

void lunatik_view_open(lua_State *L);
int lunatik_skb_copy(lua_State *L);
int lunatik_skb_data(lua_State *L);

int lunatik_skb_connmark(lua_State *L);
int lunatik_skb_ctstate(lua_State *L);
int lunatik_skb_reject(lua_State *L);

#endif /* _LUNATIK_SKB_H */
