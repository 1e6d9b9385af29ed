/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * Libraries: what a script finds in its globals and behind require.
 */
#ifndef _LUNATIK_LIBRARY_H
#define _LUNATIK_LIBRARY_H

#include "lua.h"
#include "lauxlib.h"

struct lunatik_instance;
struct lunatik_packet;
struct lunatik_runtime;
struct net;

/**
 * struct lunatik_constant - a named integer in a table
 * @name: key
 * @value: integer
 */
struct lunatik_constant {
	const char *name;
	lua_Integer value;
};

void lunatik_constants(lua_State *L, const char *field,
		       const struct lunatik_constant *constants, size_t count);

int lunatik_open_lunatik(lua_State *L);
int lunatik_open_netfilter(lua_State *L);
int lunatik_open_nf(lua_State *L);
int lunatik_open_linux(lua_State *L);
int lunatik_open_byteorder(lua_State *L);
int lunatik_open_completion(lua_State *L);
int lunatik_open_counter(lua_State *L);
int lunatik_open_fifo(lua_State *L);
int lunatik_open_data(lua_State *L);
int lunatik_open_rcu(lua_State *L);
int lunatik_open_math(lua_State *L);
void *lunatik_data_new(lua_State *L, size_t size);
void lunatik_skb_open(lua_State *L);
struct lunatik_packet *lunatik_skb_new(lua_State *L);
void lunatik_reject_load(void);
void lunatik_reject_exit(void);
void lunatik_check_stack(lua_State *L);
int lunatik_random(lua_State *L);
int lunatik_ifindex_of(struct net *net, const char *name, lua_Integer index);

/* Levels of linux.log, least urgent first. */
enum lunatik_log_level {
	LUNATIK_LOG_DEBUG,
	LUNATIK_LOG_INFO,
	LUNATIK_LOG_NOTICE,
	LUNATIK_LOG_WARN,
	LUNATIK_LOG_ERR,
};

void lunatik_log(const struct lunatik_runtime *rt, int level, const char *text);

void lunatik_library_open(lua_State *L);
void lunatik_library_close(struct lunatik_instance *instance);

#endif /* _LUNATIK_LIBRARY_H */
