// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The generic netlink family "lunatik".
 *
 * Requests run in the caller's task and in parallel. Each replies with a message,
 * or fails with an extended acknowledgement that carries Lua's message.
 */
#include <linux/capability.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <net/genetlink.h>
#include <net/net_namespace.h>

#include "control.h"
#include "event.h"
#include "lunatik.h"
#include "memory.h"
#include "runtime.h"
#include "script.h"
#include "statistics.h"

#define SOURCE_MAX	(60 * 1024)

static const struct nla_policy value_policy[LUNATIK_V_MAX + 1] = {
	[LUNATIK_V_NIL] = { .type = NLA_FLAG },
	[LUNATIK_V_BOOLEAN] = NLA_POLICY_MAX(NLA_U8, 1),
	[LUNATIK_V_INTEGER] = { .type = NLA_S64 },
	[LUNATIK_V_STRING] = { .type = NLA_BINARY, .len = LUNATIK_VALUES_BYTES },
};

/* For requests without attributes: one entry, or none would be looked at. */
static const struct nla_policy info_policy[] = {
	[LUNATIK_A_ID] = { .type = NLA_REJECT },
};

static const struct nla_policy create_policy[] = {
	[LUNATIK_A_NAME] = { .type = NLA_NUL_STRING, .len = LUNATIK_NAME_MAX - 1 },
	[LUNATIK_A_SOURCE] = { .type = NLA_BINARY, .len = SOURCE_MAX },
	[LUNATIK_A_SLEEP] = NLA_POLICY_MAX(NLA_U8, 1),
	[LUNATIK_A_NETNS_FD] = { .type = NLA_U32 },
	[LUNATIK_A_PERCPU] = NLA_POLICY_MAX(NLA_U8, 1),
	[LUNATIK_A_BREAKER] = { .type = NLA_U32 },
};

static const struct nla_policy replace_policy[] = {
	[LUNATIK_A_ID] = NLA_POLICY_MIN(NLA_U32, 1),
	[LUNATIK_A_NAME] = { .type = NLA_NUL_STRING, .len = LUNATIK_NAME_MAX - 1 },
	[LUNATIK_A_SOURCE] = { .type = NLA_BINARY, .len = SOURCE_MAX },
};

static const struct nla_policy id_policy[] = {
	[LUNATIK_A_ID] = NLA_POLICY_MIN(NLA_U32, 1),
};

static const struct nla_policy resume_policy[] = {
	[LUNATIK_A_ID] = NLA_POLICY_MIN(NLA_U32, 1),
	[LUNATIK_A_VALUES] = { .type = NLA_NESTED },
};

/*
 * Netlink acknowledges when we have returned, and takes only a text that is still
 * there then. So we acknowledge ourselves, and return what makes it not do so.
 */
static int control_fail(struct sk_buff *request, struct genl_info *info,
			struct lunatik_error *error)
{
	struct netlink_ext_ack ack = {};
	int errno = error->errno;

	if (!error->text) {
		if (error->ran)
			NL_SET_ERR_MSG(info->extack, LUNATIK_RESULTS_LOST "not enough memory to say why");
		else
			NL_SET_ERR_MSG(info->extack, "not enough memory to say what failed");
		return errno;
	}
	ack._msg = error->text;
	netlink_ack(request, nlmsg_hdr(request), errno, &ack);
	lunatik_error_free(error);
	return -EINTR;
}

/**
 * lunatik_control_capable() - whether the sender of a request may make it
 * @skb: request
 * @extack: told of what is missing
 *
 * Return: 0 or -EPERM.
 */
int lunatik_control_capable(struct sk_buff *skb, struct netlink_ext_ack *extack)
{
	if (netlink_capable(skb, CAP_SYS_ADMIN))
		return 0;
	NL_SET_ERR_MSG(extack, "needs CAP_SYS_ADMIN in the initial user namespace");
	return -EPERM;
}

static struct sk_buff *reply_begin(struct genl_info *info, int cmd)
{
	struct sk_buff *msg;

	msg = lunatik_memory_fails() ? NULL :
		genlmsg_new(GENLMSG_DEFAULT_SIZE, GFP_KERNEL);
	if (msg) /* which has room for the header */
		genlmsg_put_reply(msg, info, &lunatik_family, 0, cmd);
	return msg;
}

static int reply_end(struct sk_buff *msg, struct genl_info *info, int errno)
{
	if (errno) {
		nlmsg_free(msg);
		return errno;
	}
	nlmsg_end(msg, nlmsg_hdr(msg));
	return genlmsg_reply(msg, info);
}

/* INFO_GET */

static int control_info(struct sk_buff *skb, struct genl_info *info)
{
	u64 limit, taken = lunatik_memory_taken(&limit);
	struct sk_buff *msg;
	int errno = 0;

	msg = reply_begin(info, LUNATIK_CMD_INFO_GET);
	if (!msg)
		return -ENOMEM;
	if (nla_put_string(msg, LUNATIK_A_VERSION, LUNATIK_VERSION) ||
	    nla_put_string(msg, LUNATIK_A_LUA_VERSION, LUA_RELEASE) ||
	    nla_put_string(msg, LUNATIK_A_LUA_ROOT, lunatik_script_root()) ||
	    nla_put_u32(msg, LUNATIK_A_RUNTIMES, lunatik_runtime_count()) ||
	    nla_put_u64_64bit(msg, LUNATIK_A_MEMORY, taken, LUNATIK_A_PAD) ||
	    nla_put_u64_64bit(msg, LUNATIK_A_MEMORY_LIMIT, limit, LUNATIK_A_PAD))
		errno = -EMSGSIZE;
	return reply_end(msg, info, errno);
}

/* RUNTIME_GET */

static int put_runtime(struct sk_buff *msg, struct lunatik_runtime *rt)
{
	struct lunatik_message last_error = lunatik_runtime_last_error(rt);
	struct lunatik_sum sum;

	lunatik_runtime_sum(rt, &sum);
	if (nla_put_u32(msg, LUNATIK_A_ID, rt->id) ||
	    nla_put_string(msg, LUNATIK_A_NAME, lunatik_runtime_name(rt).text) ||
	    nla_put_u8(msg, LUNATIK_A_SLEEP, rt->sleep) ||
	    nla_put_u32(msg, LUNATIK_A_NETNS_INO, READ_ONCE(rt->netns)) ||
	    nla_put_u8(msg, LUNATIK_A_PERCPU, rt->percpu) ||
	    nla_put_u32(msg, LUNATIK_A_GENERATION, READ_ONCE(rt->generation)) ||
	    nla_put_u32(msg, LUNATIK_A_BREAKER, rt->breaker) ||
	    nla_put_u32(msg, LUNATIK_A_STATE, sum.state) ||
	    nla_put_u64_64bit(msg, LUNATIK_A_MEMORY, sum.memory,
			      LUNATIK_A_PAD) ||
	    nla_put_u64_64bit(msg, LUNATIK_A_MEMORY_LIMIT, sum.memory_limit,
			      LUNATIK_A_PAD) ||
	    nla_put_u64_64bit(msg, LUNATIK_A_BUDGET, sum.budget,
			      LUNATIK_A_PAD) ||
	    nla_put_u32(msg, LUNATIK_A_HOOKS, READ_ONCE(rt->slot_count)) ||
	    nla_put_u64_64bit(msg, LUNATIK_A_CALLS, sum.calls,
			      LUNATIK_A_PAD) ||
	    nla_put_u64_64bit(msg, LUNATIK_A_ERRORS, sum.errors,
			      LUNATIK_A_PAD))
		return -EMSGSIZE;
	if (last_error.text[0] &&
	    nla_put_string(msg, LUNATIK_A_LAST_ERROR, last_error.text))
		return -EMSGSIZE;
	return 0;
}

/* The runtime that a request names, with a reference, or NULL and an errno. */
static struct lunatik_runtime *control_find(struct sk_buff *request,
					    struct genl_info *info, int *errno)
{
	struct lunatik_error error = {};
	struct lunatik_runtime *rt;
	u32 id;

	*errno = -EINVAL;
	if (GENL_REQ_ATTR_CHECK(info, LUNATIK_A_ID))
		return NULL;
	id = nla_get_u32(info->attrs[LUNATIK_A_ID]);
	rt = lunatik_runtime_find(id);
	if (!rt) {
		lunatik_error_set(&error, GFP_KERNEL, -ESRCH,
				  "no runtime has the number %u", id);
		*errno = control_fail(request, info, &error);
	}
	return rt;
}

static int control_get(struct sk_buff *skb, struct genl_info *info)
{
	struct lunatik_runtime *rt;
	struct sk_buff *msg;
	int errno;

	errno = lunatik_control_capable(skb, info->extack);
	if (errno)
		return errno;
	rt = control_find(skb, info, &errno);
	if (!rt)
		return errno;
	msg = reply_begin(info, LUNATIK_CMD_RUNTIME_GET);
	errno = msg ? reply_end(msg, info, put_runtime(msg, rt)) : -ENOMEM;
	lunatik_runtime_put(rt);
	return errno;
}

static int control_dump(struct sk_buff *msg, struct netlink_callback *cb)
{
	u32 id = cb->args[0];
	struct lunatik_runtime *rt;
	void *header;
	int errno;

	errno = lunatik_control_capable(cb->skb, cb->extack);
	if (errno)
		return errno;
	while ((rt = lunatik_runtime_next(&id))) {
		header = genlmsg_put(msg, NETLINK_CB(cb->skb).portid,
				     cb->nlh->nlmsg_seq, &lunatik_family,
				     NLM_F_MULTI, LUNATIK_CMD_RUNTIME_GET);
		errno = header ? put_runtime(msg, rt) : -EMSGSIZE;
		lunatik_runtime_put(rt);
		if (errno) {
			if (header)
				genlmsg_cancel(msg, header);
			break;
		}
		genlmsg_end(msg, header);
		cb->args[0] = id;
	}
	return msg->len;
}

/* CREATE */

static struct net *control_net(struct genl_info *info)
{
	struct nlattr *fd = info->attrs[LUNATIK_A_NETNS_FD];
	struct net *net;

	if (!fd)
		return get_net(genl_info_net(info));
	net = get_net_ns_by_fd(nla_get_u32(fd));
	if (IS_ERR(net))
		NL_SET_ERR_MSG_ATTR(info->extack, fd,
				    "not a file descriptor of a network namespace");
	return net;
}

/* The name and source of a script; the name is required. */
static void control_script(struct genl_info *info, struct lunatik_spec *spec)
{
	struct nlattr *source = info->attrs[LUNATIK_A_SOURCE];

	spec->name = nla_data(info->attrs[LUNATIK_A_NAME]);
	if (source) {
		spec->source = nla_data(source);
		spec->source_len = nla_len(source);
	}
}

static bool control_flag(struct genl_info *info, int attr, bool otherwise)
{
	return info->attrs[attr] ? nla_get_u8(info->attrs[attr]) : otherwise;
}

static int control_create(struct sk_buff *skb, struct genl_info *info)
{
	struct lunatik_error error = {};
	struct lunatik_spec spec = {};
	struct lunatik_runtime *rt;
	struct sk_buff *msg;
	int errno;

	errno = lunatik_control_capable(skb, info->extack);
	if (errno)
		return errno;
	if (GENL_REQ_ATTR_CHECK(info, LUNATIK_A_NAME))
		return -EINVAL;
	control_script(info, &spec);
	spec.sleep = control_flag(info, LUNATIK_A_SLEEP, true);
	spec.percpu = control_flag(info, LUNATIK_A_PERCPU, false);
	if (spec.sleep && spec.percpu) {
		NL_SET_ERR_MSG(info->extack,
			       "a sleepable runtime has one instance: percpu needs sleep=0");
		return -EINVAL;
	}
	if (info->attrs[LUNATIK_A_BREAKER])
		spec.breaker = nla_get_u32(info->attrs[LUNATIK_A_BREAKER]);
	if (spec.sleep && spec.breaker) {
		NL_SET_ERR_MSG(info->extack,
			       "a sleepable runtime has no callbacks: breaker needs sleep=0");
		return -EINVAL;
	}
	msg = reply_begin(info, LUNATIK_CMD_CREATE);
	if (!msg)
		return -ENOMEM;
	spec.net = control_net(info);
	if (IS_ERR(spec.net)) {
		nlmsg_free(msg);
		return PTR_ERR(spec.net);
	}
	rt = lunatik_runtime_create(&spec, &error);
	put_net(spec.net);
	if (!rt) {
		nlmsg_free(msg);
		return control_fail(skb, info, &error);
	}
	errno = put_runtime(msg, rt);
	lunatik_runtime_put(rt);
	return reply_end(msg, info, errno);
}

/* RESUME */

static int value_parse(struct nlattr *nest, struct lunatik_value *value,
		       char **room, struct netlink_ext_ack *extack)
{
	struct nlattr *tb[LUNATIK_V_MAX + 1];
	int errno;

	errno = nla_parse_nested(tb, LUNATIK_V_MAX, nest, value_policy, extack);
	if (errno)
		return errno;
	if (tb[LUNATIK_V_BOOLEAN]) {
		value->type = LUA_TBOOLEAN;
		value->integer = nla_get_u8(tb[LUNATIK_V_BOOLEAN]);
	} else if (tb[LUNATIK_V_INTEGER]) {
		value->type = LUA_TNUMBER;
		value->integer = nla_get_s64(tb[LUNATIK_V_INTEGER]);
	} else if (tb[LUNATIK_V_STRING]) {
		value->type = LUA_TSTRING;
		value->len = nla_len(tb[LUNATIK_V_STRING]);
		value->bytes = memcpy(*room, nla_data(tb[LUNATIK_V_STRING]),
				      value->len);
		*room += value->len;
	} else if (!tb[LUNATIK_V_NIL]) {
		NL_SET_ERR_MSG_ATTR(extack, nest, "a value of no type");
		return -EINVAL;
	}
	return 0;
}

/* The list of values in @nest, which may be NULL. For lunatik_values_free(). */
static struct lunatik_values *values_parse(struct nlattr *nest,
					   struct netlink_ext_ack *extack)
{
	struct lunatik_values *values;
	struct nlattr *attr;
	int rem, errno;
	char *room;
	u32 n = 0;

	if (nest)
		nla_for_each_nested(attr, nest, rem)
			n++;
	if (n > LUNATIK_VALUES_MAX) {
		NL_SET_ERR_MSG_ATTR(extack, nest, "too many values");
		return ERR_PTR(-E2BIG);
	}
	values = lunatik_values_alloc(n, nest ? nla_len(nest) : 0, GFP_KERNEL);
	if (!values || !nest)
		return values ?: ERR_PTR(-ENOMEM);
	room = lunatik_values_bytes(values);
	n = 0;
	nla_for_each_nested(attr, nest, rem) {
		errno = -EINVAL;
		if (nla_type(attr) == LUNATIK_A_VALUE)
			errno = value_parse(attr, &values->value[n++], &room,
					    extack);
		if (errno) {
			lunatik_values_free(values);
			return ERR_PTR(errno);
		}
	}
	return values;
}

static int put_value(struct sk_buff *msg, const struct lunatik_value *value)
{
	switch (value->type) {
	case LUA_TBOOLEAN:
		return nla_put_u8(msg, LUNATIK_V_BOOLEAN, value->integer);
	case LUA_TNUMBER:
		return nla_put_s64(msg, LUNATIK_V_INTEGER, value->integer,
				   LUNATIK_V_PAD);
	case LUA_TSTRING:
		return nla_put(msg, LUNATIK_V_STRING, value->len, value->bytes);
	default:
		return nla_put_flag(msg, LUNATIK_V_NIL);
	}
}

static int put_values(struct sk_buff *msg, const struct lunatik_values *values)
{
	struct nlattr *list = nla_nest_start(msg, LUNATIK_A_VALUES);
	struct nlattr *one;
	u32 i;

	if (!list)
		return -EMSGSIZE;
	for (i = 0; values && i < values->count; i++) {
		one = nla_nest_start(msg, LUNATIK_A_VALUE);
		if (!one || put_value(msg, &values->value[i]))
			return -EMSGSIZE;
		nla_nest_end(msg, one);
	}
	nla_nest_end(msg, list);
	return 0;
}

static size_t values_size(const struct lunatik_values *values)
{
	size_t size = nla_total_size(0);
	u32 i;

	for (i = 0; values && i < values->count; i++)
		size += nla_total_size(nla_total_size_64bit(sizeof(s64)) +
				       nla_total_size(values->value[i].len));
	return size;
}

/* What a resumed script has yielded or returned; most of it fits the message as it is. */
static int put_results(struct sk_buff *msg, const struct lunatik_values *results,
		       struct netlink_ext_ack *extack)
{
	size_t size = values_size(results);

	if (size > skb_tailroom(msg) &&
	    (lunatik_memory_fails() || pskb_expand_head(msg, 0, size, GFP_KERNEL))) {
		NL_SET_ERR_MSG(extack, LUNATIK_RESULTS_LOST "not enough memory");
		return -ENOMEM;
	}
	return put_values(msg, results);
}

static int control_resume(struct sk_buff *skb, struct genl_info *info)
{
	struct lunatik_values *args, *results = NULL;
	struct lunatik_error error = {};
	struct lunatik_runtime *rt;
	struct sk_buff *msg;
	int errno;

	errno = lunatik_control_capable(skb, info->extack);
	if (errno)
		return errno;
	rt = control_find(skb, info, &errno);
	if (!rt)
		return errno;
	args = values_parse(info->attrs[LUNATIK_A_VALUES], info->extack);
	if (IS_ERR(args)) {
		errno = PTR_ERR(args);
		goto put;
	}
	msg = reply_begin(info, LUNATIK_CMD_RESUME);
	errno = -ENOMEM;
	if (!msg)
		goto free_args;
	if (lunatik_runtime_resume(rt, NULL, args, &results, &error)) {
		nlmsg_free(msg);
		errno = control_fail(skb, info, &error);
	} else {
		errno = put_runtime(msg, rt) ?:
			put_results(msg, results, info->extack);
		errno = reply_end(msg, info, errno);
	}
	lunatik_values_free(results);
free_args:
	lunatik_values_free(args);
put:
	lunatik_runtime_put(rt);
	return errno;
}

/* REPLACE */

static int control_replace(struct sk_buff *skb, struct genl_info *info)
{
	struct lunatik_error error = {};
	struct lunatik_spec spec = {};
	struct lunatik_runtime *rt;
	struct sk_buff *msg;
	int errno;

	errno = lunatik_control_capable(skb, info->extack);
	if (errno)
		return errno;
	if (GENL_REQ_ATTR_CHECK(info, LUNATIK_A_NAME))
		return -EINVAL;
	control_script(info, &spec);
	rt = control_find(skb, info, &errno);
	if (!rt)
		return errno;
	msg = reply_begin(info, LUNATIK_CMD_REPLACE);
	errno = -ENOMEM;
	if (!msg)
		goto put;
	if (lunatik_runtime_replace(rt, &spec, &error)) {
		nlmsg_free(msg);
		errno = control_fail(skb, info, &error);
	} else {
		errno = reply_end(msg, info, put_runtime(msg, rt));
	}
put:
	lunatik_runtime_put(rt);
	return errno;
}

/* STOP */

static int control_stop(struct sk_buff *skb, struct genl_info *info)
{
	struct lunatik_error error = {};
	struct lunatik_runtime *rt;
	int errno;

	errno = lunatik_control_capable(skb, info->extack);
	if (errno)
		return errno;
	rt = control_find(skb, info, &errno);
	if (!rt)
		return errno;
	errno = lunatik_runtime_stop(rt, false, LUNATIK_STOP_REQUESTED, &error);
	lunatik_runtime_put(rt);
	return errno ? control_fail(skb, info, &error) : 0;
}

static const struct genl_ops control_ops[] = {
	{
		.cmd = LUNATIK_CMD_INFO_GET,
		.doit = control_info,
		.policy = info_policy,
		.maxattr = ARRAY_SIZE(info_policy) - 1,
	}, {
		.cmd = LUNATIK_CMD_CREATE,
		.doit = control_create,
		.policy = create_policy,
		.maxattr = ARRAY_SIZE(create_policy) - 1,
	}, {
		.cmd = LUNATIK_CMD_RUNTIME_GET,
		.doit = control_get,
		.dumpit = control_dump,
		.policy = id_policy,
		.maxattr = ARRAY_SIZE(id_policy) - 1,
	}, {
		.cmd = LUNATIK_CMD_RESUME,
		.doit = control_resume,
		.policy = resume_policy,
		.maxattr = ARRAY_SIZE(resume_policy) - 1,
	}, {
		.cmd = LUNATIK_CMD_REPLACE,
		.doit = control_replace,
		.policy = replace_policy,
		.maxattr = ARRAY_SIZE(replace_policy) - 1,
	}, {
		.cmd = LUNATIK_CMD_STOP,
		.doit = control_stop,
		.policy = id_policy,
		.maxattr = ARRAY_SIZE(id_policy) - 1,
	}, {
		.cmd = LUNATIK_CMD_HOOK_GET,
		.dumpit = lunatik_statistics_dump,
		.policy = id_policy,
		.maxattr = ARRAY_SIZE(id_policy) - 1,
	},
};

static const struct genl_multicast_group control_groups[] = {
	[LUNATIK_EVENTS] = {
		.name = LUNATIK_GENL_EVENTS,
		.flags = GENL_MCAST_CAP_SYS_ADMIN,
	},
};

struct genl_family lunatik_family __ro_after_init = {
	.name = LUNATIK_GENL_NAME,
	.version = LUNATIK_GENL_VERSION,
	.maxattr = LUNATIK_A_MAX,
	.netnsok = true,
	.parallel_ops = true,
	.ops = control_ops,
	.n_ops = ARRAY_SIZE(control_ops),
	.mcgrps = control_groups,
	.n_mcgrps = ARRAY_SIZE(control_groups),
	.resv_start_op = LUNATIK_CMD_MAX + 1,
	.module = THIS_MODULE,
};

int __init lunatik_control_init(void)
{
	return lunatik_memory_fails() ? -ENOMEM :
		genl_register_family(&lunatik_family);
}

void lunatik_control_exit(void)
{
	lunatik_event_flush();
	genl_unregister_family(&lunatik_family);
}
