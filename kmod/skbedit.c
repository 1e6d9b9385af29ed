// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The packet object of callbacks: what changes a packet. See skb.h.
 *
 * A packet whose bytes others hold too (a capture, a bridge that floods, TCP's queue
 * of what it may have to send again) gets bytes of its own first. Fields set by name
 * keep the checksums right by the difference they make, so what was wrong on arrival
 * stays so. Other changes are for skb:checksum() to complete.
 *
 * skb->ip_summed says who checks, or completes, the transport checksum:
 *	COMPLETE	the device has summed the bytes up: no longer true
 *	UNNECESSARY	somebody has checked it: no longer true when bytes change
 *	PARTIAL		the field holds the sum of the pseudo header only, and the
 *			device, or the receiver on this machine, does the rest
 *	NONE		the receiver checks it
 */
#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <net/checksum.h>
#include <net/dsfield.h>
#include <net/ip.h>
#include <net/ip6_checksum.h>

#include "memory.h"
#include "skb.h"

/**
 * lunatik_packet_writable() - have bytes of the packet's own up to an offset
 * @L: thread; an error is raised without memory
 * @skb: packet
 * @end: offset, at most the packet's length; everything before it, link layer
 *	header included, may be written after that
 */
void lunatik_packet_writable(lua_State *L, struct sk_buff *skb, int end)
{
	if (skb_shared(skb))
		luaL_error(L, "the packet cannot be changed here: it is shared with others");
	end += skb_network_offset(skb);
	if (lunatik_memory_fails() || skb_ensure_writable(skb, max(end, 0)))
		luaL_error(L, "not enough memory");
	if (skb->ip_summed == CHECKSUM_COMPLETE)
		skb->ip_summed = CHECKSUM_NONE;
}

/**
 * lunatik_packet_changed() - note that bytes were changed in any way
 * @packet: writable
 */
void lunatik_packet_changed(struct lunatik_packet *packet)
{
	struct sk_buff *skb = packet->skb;

	packet->parsed = false;
	skb->csum_valid = 0;
	if (skb->ip_summed == CHECKSUM_UNNECESSARY)
		skb->ip_summed = CHECKSUM_NONE;
}

/*
 * The offset of the transport checksum, or 0 where the packet holds none, and
 * whether it sums up the addresses too.
 */
static int sum_offset(const struct lunatik_packet *packet, bool *addresses)
{
	bool ipv4 = packet->family == NFPROTO_IPV4;
	int offset = 0;

	*addresses = true;
	switch (packet->protocol) {
	case IPPROTO_TCP:
		offset = offsetof(struct tcphdr, check);
		break;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_DCCP: /* where UDP has it */
		offset = offsetof(struct udphdr, check);
		break;
	case IPPROTO_ICMP:
		*addresses = false;
		offset = ipv4 ? offsetof(struct icmphdr, checksum) : 0;
		break;
	case IPPROTO_ICMPV6:
		offset = ipv4 ? 0 : offsetof(struct icmp6hdr, icmp6_cksum);
		break;
	}
	if (!offset || !packet->transport)
		return 0;
	offset += packet->transport;
	return offset + (int)sizeof(__sum16) <= packet->end ? offset : 0;
}

/* Whether the transport checksum is to be computed: UDP may go without. */
static bool sum_is_used(const struct lunatik_packet *packet, const __sum16 *sum)
{
	return *sum || packet->protocol != IPPROTO_UDP ||
		packet->skb->ip_summed == CHECKSUM_PARTIAL;
}

/* In UDP 0 says that there is no checksum. */
static void sum_finish(const struct lunatik_packet *packet, __sum16 *sum)
{
	if (!*sum && packet->protocol == IPPROTO_UDP &&
	    packet->skb->ip_summed != CHECKSUM_PARTIAL)
		*sum = CSUM_MANGLED_0;
}

/* Fields by name */

#define NO_IP	"the packet is neither IPv4 nor IPv6"

/* What the packet does not hold is nil when it is asked for; setting it raises. */
static int push_nothing(lua_State *L, const char *why)
{
	if (lua_gettop(L) > 1)
		luaL_error(L, "%s", why);
	lua_pushnil(L);
	return 1;
}

static void replace_address(const struct lunatik_packet *packet, __sum16 *sum,
			    void *field, const void *from, const void *to)
{
	struct sk_buff *skb = packet->skb;
	__be32 from4, to4;

	if (packet->family == NFPROTO_IPV6) {
		if (sum)
			inet_proto_csum_replace16(sum, skb, from, to, true);
		memcpy(field, to, sizeof(struct in6_addr));
		return;
	}
	memcpy(&from4, from, sizeof(from4));
	memcpy(&to4, to, sizeof(to4));
	csum_replace4(&ip_hdr(skb)->check, from4, to4);
	if (sum)
		inet_proto_csum_replace4(sum, skb, from4, to4, true);
	memcpy(field, to, sizeof(to4));
}

/* Set an address to argument 2; raises. */
static void set_address(lua_State *L, struct lunatik_packet *packet, int offset,
			size_t len)
{
	__be32 from[4], to[4]; /* aligned, as the checksum's functions want them */
	__sum16 *sum = NULL;
	const char *address;
	bool addresses;
	size_t given;
	u8 *header;
	int check;

	address = luaL_checklstring(L, 2, &given);
	luaL_argcheck(L, given == len, 2, len == 4 ?
		      "an IPv4 address is a string of 4 bytes" :
		      "an IPv6 address is a string of 16 bytes");
	check = sum_offset(packet, &addresses);
	lunatik_packet_writable(L, packet->skb,
				max(offset + (int)len,
				    check ? check + (int)sizeof(*sum) : 0));
	header = skb_network_header(packet->skb);
	if (check && addresses)
		sum = (__sum16 *)(header + check);
	if (sum && !sum_is_used(packet, sum))
		sum = NULL;
	memcpy(from, header + offset, len);
	memcpy(to, address, len);
	replace_address(packet, sum, header + offset, from, to);
	if (sum)
		sum_finish(packet, sum);
}

static int skb_address(lua_State *L, int offset4, int offset6)
{
	struct lunatik_packet *packet = lunatik_packet_parsed(L);
	bool ipv6 = packet->family == NFPROTO_IPV6;
	int offset = ipv6 ? offset6 : offset4, len = ipv6 ? 16 : 4;
	const char *address;
	char buf[16];

	if (packet->family != NFPROTO_IPV4 && !ipv6)
		return push_nothing(L, NO_IP);
	if (lua_gettop(L) > 1)
		set_address(L, packet, offset, len);
	address = skb_header_pointer(packet->skb,
				     skb_network_offset(packet->skb) + offset,
				     len, buf);
	lua_pushlstring(L, address, len); /* parsed, hence there */
	return 1;
}

/* skb:saddr([address]), skb:daddr([address]): 4 or 16 bytes, or nil */
int lunatik_skb_saddr(lua_State *L)
{
	return skb_address(L, offsetof(struct iphdr, saddr),
			   offsetof(struct ipv6hdr, saddr));
}

int lunatik_skb_daddr(lua_State *L)
{
	return skb_address(L, offsetof(struct iphdr, daddr),
			   offsetof(struct ipv6hdr, daddr));
}

static bool has_ports(const struct lunatik_packet *packet)
{
	switch (packet->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_DCCP:
	case IPPROTO_SCTP:
		return true;
	default:
		return false;
	}
}

/* An integer argument within limits; raises. */
static lua_Integer check_range(lua_State *L, lua_Integer last, const char *what)
{
	lua_Integer value = luaL_checkinteger(L, 2);

	luaL_argcheck(L, value >= 0 && value <= last, 2, what);
	return value;
}

/* Set a port to argument 2; raises. */
static void set_port(lua_State *L, struct lunatik_packet *packet, int offset)
{
	__be16 to = htons(check_range(L, U16_MAX, "a port is 0 to 65535"));
	bool addresses;
	int check = sum_offset(packet, &addresses);
	__be16 *port;
	__sum16 *sum;
	u8 *header;

	if (!check)
		luaL_error(L, packet->protocol == IPPROTO_SCTP ?
			   "the ports of SCTP cannot be set: its checksum is of another kind" :
			   "the packet ends before its checksum");
	lunatik_packet_writable(L, packet->skb, check + (int)sizeof(*sum));
	header = skb_network_header(packet->skb);
	port = (__be16 *)(header + packet->transport + offset);
	sum = (__sum16 *)(header + check);
	if (sum_is_used(packet, sum)) {
		inet_proto_csum_replace2(sum, packet->skb, *port, to, false);
		sum_finish(packet, sum);
	}
	*port = to;
}

static int skb_port(lua_State *L, int offset)
{
	struct lunatik_packet *packet = lunatik_packet_parsed(L);
	const __be16 *port = NULL;
	__be16 buf;

	if (has_ports(packet))
		port = lunatik_packet_field(packet, offset, &buf, sizeof(buf));
	if (!port)
		return push_nothing(L, "the packet has no ports");
	if (lua_gettop(L) > 1) {
		set_port(L, packet, offset);
		lua_settop(L, 2);
		return 1;
	}
	lua_pushinteger(L, ntohs(*port));
	return 1;
}

/* skb:sport([port]), skb:dport([port]): of TCP, UDP, UDP-Lite, DCCP, SCTP, or nil */
int lunatik_skb_sport(lua_State *L)
{
	return skb_port(L, 0);
}

int lunatik_skb_dport(lua_State *L)
{
	return skb_port(L, sizeof(__be16));
}

/* Fields of one byte in both IP headers */

static const void *ip_header(const struct lunatik_packet *packet, void *buf)
{
	const struct sk_buff *skb = packet->skb;

	switch (packet->family) {
	case NFPROTO_IPV4:
		return skb_header_pointer(skb, skb_network_offset(skb),
					  sizeof(struct iphdr), buf);
	case NFPROTO_IPV6:
		return skb_header_pointer(skb, skb_network_offset(skb),
					  sizeof(struct ipv6hdr), buf);
	default:
		return NULL;
	}
}

static void ip_header_writable(lua_State *L, struct lunatik_packet *packet)
{
	lunatik_packet_writable(L, packet->skb,
				packet->family == NFPROTO_IPV4 ?
				sizeof(struct iphdr) : sizeof(struct ipv6hdr));
}

static void set_ttl(struct lunatik_packet *packet, u8 ttl)
{
	struct iphdr *ip = ip_hdr(packet->skb);

	if (packet->family == NFPROTO_IPV6) {
		ipv6_hdr(packet->skb)->hop_limit = ttl;
		return;
	}
	csum_replace2(&ip->check, htons(ip->ttl << 8), htons(ttl << 8));
	ip->ttl = ttl;
}

/* skb:ttl([value]): IPv4's time to live or IPv6's hop limit, or nil */
int lunatik_skb_ttl(lua_State *L)
{
	struct lunatik_packet *packet = lunatik_packet_parsed(L);
	struct ipv6hdr buf;
	const void *header = ip_header(packet, &buf);
	u8 ttl;

	if (!header)
		return push_nothing(L, NO_IP);
	if (lua_gettop(L) > 1) {
		ttl = check_range(L, U8_MAX, "a time to live is 0 to 255");
		ip_header_writable(L, packet);
		set_ttl(packet, ttl);
	} else {
		ttl = packet->family == NFPROTO_IPV4 ?
			((const struct iphdr *)header)->ttl :
			((const struct ipv6hdr *)header)->hop_limit;
	}
	lua_pushinteger(L, ttl);
	return 1;
}

#define ECN_MASK	3

/* skb:dscp([value]): differentiated services code point, 0 to 63, or nil */
int lunatik_skb_dscp(lua_State *L)
{
	struct lunatik_packet *packet = lunatik_packet_parsed(L);
	bool ipv4 = packet->family == NFPROTO_IPV4;
	struct ipv6hdr buf;
	const void *header = ip_header(packet, &buf);
	u8 dscp;

	if (!header)
		return push_nothing(L, NO_IP);
	if (lua_gettop(L) > 1) {
		dscp = check_range(L, 63, "a code point is 0 to 63");
		ip_header_writable(L, packet);
		if (ipv4)
			ipv4_change_dsfield(ip_hdr(packet->skb), ECN_MASK,
					    dscp << 2);
		else
			ipv6_change_dsfield(ipv6_hdr(packet->skb), ECN_MASK,
					    dscp << 2);
	} else {
		dscp = (ipv4 ? ipv4_get_dsfield(header) :
			ipv6_get_dsfield(header)) >> 2;
	}
	lua_pushinteger(L, dscp);
	return 1;
}

/* Checksums */

static __sum16 pseudo_sum(const struct lunatik_packet *packet, int len, __wsum sum)
{
	const struct iphdr *ip = ip_hdr(packet->skb);
	const struct ipv6hdr *ip6 = ipv6_hdr(packet->skb);

	if (packet->family == NFPROTO_IPV6)
		return csum_ipv6_magic(&ip6->saddr, &ip6->daddr, len,
				       packet->protocol, sum);
	if (packet->protocol == IPPROTO_ICMP)
		return csum_fold(sum);
	return csum_tcpudp_magic(ip->saddr, ip->daddr, len, packet->protocol, sum);
}

/* Whether the transport checksum can be computed from this packet alone. */
static bool sum_is_whole(const struct lunatik_packet *packet)
{
	const struct sk_buff *skb = packet->skb;

	if (packet->fragment)
		return false;
	/* What the device is to complete may lie in a tunnel's packet inside. */
	if (skb->ip_summed == CHECKSUM_PARTIAL &&
	    skb_checksum_start_offset(skb) !=
	    skb_network_offset(skb) + packet->transport)
		return false;
	/* These sum up as much as their headers say. */
	return packet->protocol != IPPROTO_UDPLITE &&
		packet->protocol != IPPROTO_DCCP;
}

static void compute_sum(struct lunatik_packet *packet, __sum16 *sum)
{
	struct sk_buff *skb = packet->skb;
	int len = packet->end - packet->transport;

	if (!sum_is_used(packet, sum))
		return;
	*sum = 0;
	if (skb->ip_summed == CHECKSUM_PARTIAL)
		*sum = ~pseudo_sum(packet, len, 0);
	else
		*sum = pseudo_sum(packet, len,
				  skb_checksum(skb, skb_network_offset(skb) +
					       packet->transport, len, 0));
	sum_finish(packet, sum);
}

/* Compute the checksums of a parsed packet; tell if the transport's is among them. */
static bool compute_sums(lua_State *L, struct lunatik_packet *packet)
{
	struct sk_buff *skb = packet->skb;
	int end = sizeof(struct ipv6hdr), check;
	bool addresses;

	check = sum_offset(packet, &addresses);
	if (check && !sum_is_whole(packet))
		check = 0;
	if (packet->family == NFPROTO_IPV4) {
		lunatik_packet_writable(L, skb, sizeof(struct iphdr));
		end = ip_hdrlen(skb);
	}
	end = max(end, check ? check + (int)sizeof(__sum16) : 0);
	lunatik_packet_writable(L, skb, end);
	if (packet->family == NFPROTO_IPV4)
		ip_send_check(ip_hdr(skb));
	if (check)
		compute_sum(packet, (__sum16 *)(skb_network_header(skb) + check));
	return check != 0;
}

static struct lunatik_packet *check_ip(lua_State *L)
{
	struct lunatik_packet *packet = lunatik_packet_parsed(L);

	if (packet->family != NFPROTO_IPV4 && packet->family != NFPROTO_IPV6)
		luaL_error(L, NO_IP);
	return packet;
}

/*
 * skb:checksum(): compute the IPv4 header's and the transport's checksum. False
 * where the latter cannot be known, as in a fragment.
 */
int lunatik_skb_checksum(lua_State *L)
{
	struct lunatik_packet *packet = check_ip(L);

	lua_pushboolean(L, compute_sums(L, packet));
	return 1;
}

/* Size */

/* The least length that leaves what the kernel relies on. */
static int least_len(const struct lunatik_packet *packet)
{
	const struct sk_buff *skb = packet->skb;
	int least = lunatik_packet_payload(packet) ?: packet->transport;

	if (skb->ip_summed == CHECKSUM_PARTIAL)
		least = max(least, skb_checksum_start_offset(skb) +
			    skb->csum_offset + (int)sizeof(__sum16) -
			    skb_network_offset(skb));
	return least;
}

/* Append zeros; false without memory. */
static bool grow(struct sk_buff *skb, int len)
{
	int room;

	if (lunatik_memory_fails() || skb_linearize_cow(skb))
		return false;
	room = skb_tailroom(skb);
	if (room < len && (lunatik_memory_fails() ||
			   pskb_expand_head(skb, 0, len - room, GFP_ATOMIC)))
		return false;
	skb_put_zero(skb, len);
	return true;
}

static void set_lengths(const struct lunatik_packet *packet, int len)
{
	u8 *header = skb_network_header(packet->skb);
	struct udphdr *udp = (struct udphdr *)(header + packet->transport);

	if (packet->family == NFPROTO_IPV4)
		ip_hdr(packet->skb)->tot_len = htons(len);
	else
		ipv6_hdr(packet->skb)->payload_len =
			htons(len - sizeof(struct ipv6hdr));
	if (packet->protocol == IPPROTO_UDP && lunatik_packet_payload(packet))
		udp->len = htons(len - packet->transport);
}

/*
 * skb:resize(n): cut the packet, or append zeros, so that #skb is n. The lengths in
 * its IP and UDP headers and the checksums follow.
 */
int lunatik_skb_resize(lua_State *L)
{
	struct lunatik_packet *packet = check_ip(L);
	struct sk_buff *skb = packet->skb;
	lua_Integer n = luaL_checkinteger(L, 2);
	int len = lunatik_packet_len(skb), least = least_len(packet);
	bool fits;

	if (!packet->transport || packet->fragment)
		luaL_error(L, "a fragment, or a packet that ends within its headers, cannot be resized");
	if (skb_is_gso(skb))
		luaL_error(L, "a packet that is yet to be segmented cannot be resized");
	if (n < least || n > U16_MAX)
		luaL_error(L, "a length of %I is outside %d to %d: headers are kept, and IP has 16 bits for it",
			   n, least, (int)U16_MAX);
	lunatik_packet_writable(L, skb, least);
	fits = n > len ? grow(skb, n - len) :
		!lunatik_memory_fails() &&
		!pskb_trim(skb, skb_network_offset(skb) + n);
	if (!fits)
		luaL_error(L, "not enough memory");
	set_lengths(packet, n);
	lunatik_packet_changed(packet);
	compute_sums(L, lunatik_packet_parsed(L));
	lua_settop(L, 2);
	return 1;
}
